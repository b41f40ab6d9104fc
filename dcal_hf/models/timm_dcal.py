"""timm's Vision Transformers, attending through DCAL: what `encoder_dcal` needs to know of them.

Supported is what timm builds from its standard `Block` and `Attention`: ViT, DeiT, DeiT-3, the R50 hybrid, DINOv2,
CLIP, also with registers, layer scale and qk-norm; and CaiT, whose blocks are in `cait_dcal`. The classes below have
timm's parameters under timm's names.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.vit.modeling_vit import eager_attention_forward  # noqa: F401  TimmAttention's own, by module
from transformers.utils import is_timm_available, requires_backends

from .attention_dcal import ATTENTION_NAME, dcal_attention_forward
from .cait_dcal import CAIT_CLASSES, CAIT_FAMILY


if is_timm_available():
    from timm import create_model
    from timm.models.cait import Cait
    from timm.models.vision_transformer import Attention, Block, LayerScale, VisionTransformer
else:
    # A checkpoint whose backbone is one of transformers is read without timm.
    Attention = Block = nn.Module


class TimmAttention(Attention):
    """timm's self-attention with its middle handed over to `dcal_attention_forward`."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        **kwargs,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D); `memory` and `kwargs` are those of `dcal_attention_forward`."""
        if memory is None:
            query, key, value = self.project(hidden_states, 0, 3)
            key = self.k_norm(key)
        else:
            (query,) = self.project(hidden_states, 0, 1)
            key, value = memory
        dropout = self.attn_drop.p if self.training else 0.0
        output, _ = dcal_attention_forward(
            self,
            self.q_norm(query),
            key,
            value,
            attention_mask,
            scaling=self.scale,
            dropout=dropout,
            **kwargs,
        )
        output = self.norm(output.flatten(2))
        if self.gate is not None:
            output = output * self.gate(hidden_states).sigmoid()
        return self.proj_drop(self.proj(output))

    def project(self, hidden_states: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
        """Some of queries (0), keys (1) and values (2): (B, N, D) -> each (B, H, N, d)."""
        if isinstance(self.qkv, nn.Linear):
            rows = slice(start * self.attn_dim, stop * self.attn_dim)
            bias = None if self.qkv.bias is None else self.qkv.bias[rows]
            projected = nn.functional.linear(hidden_states, self.qkv.weight[rows], bias)
        else:
            # An adapter stands around all three.
            projected = self.qkv(hidden_states)[..., start * self.attn_dim:stop * self.attn_dim]
        return projected.unflatten(2, (stop - start, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)


class TimmBlock(GradientCheckpointingLayer, Block):
    """timm's pre-norm block, which takes the attention's arguments, and which transformers can recompute."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        attention = self.attn(self.norm1(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.drop_path1(self.ls1(attention))
        return hidden_states + self.drop_path2(self.ls2(self.mlp(self.norm2(hidden_states))))


def timm_keys_values(attention: TimmAttention, normed: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values without the queries: (B, N, D) -> twice (B, H, N, d)."""
    key, value = attention.project(normed, 1, 3)
    return attention.k_norm(key), value


def embed_timm(backbone: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """[CLS, (distillation, registers,) patches], as in timm's `forward_features`."""
    vit = backbone.timm_model
    patches = vit.patch_embed(pixel_values.to(vit.cls_token.dtype))
    return vit.norm_pre(vit.patch_drop(vit._pos_embed(patches)))


def build_timm(config: PreTrainedConfig, image_size: tuple[int, int], drop_path_rate: float) -> PreTrainedModel:
    """The plain encoder with positions for `image_size` and timm's own stochastic depth, attending through DCAL."""
    config = copy.deepcopy(config)
    model_args = config.model_args
    is_cait = getattr(config, "timm_family", None) == CAIT_FAMILY
    config.model_args = {
        **model_args,
        "img_size": image_size,
        "drop_path_rate": drop_path_rate,
        **(CAIT_CLASSES if is_cait else {"block_fn": TimmBlock, "attn_layer": TimmAttention}),
    }
    backbone = AutoModel.from_config(config, attn_implementation=ATTENTION_NAME)
    # Classes cannot be written to JSON. With the size of its positions the encoder loads when saved by itself.
    backbone.config.model_args = {**model_args, "img_size": list(image_size)}
    return backbone


@torch.no_grad()
def init_timm_weights(module: nn.Module) -> None:
    """What transformers' wrapper leaves as it is, and a GLCA block that a checkpoint lacks needs."""
    if isinstance(module, LayerScale):
        init.constant_(module.gamma, module.init_values)


def complete_timm_config(config: PreTrainedConfig) -> None:
    """Adds the fields of a transformers ViT configuration, which timm knows by the architecture's name alone.

    Raises:
        ValueError: If the architecture is not built from timm's standard blocks or CaiT's, or has no CLS token to
            read.
    """
    if hasattr(config, "hidden_size"):
        return
    requires_backends(config, ["timm"])
    # timm exports its number of classes here, where the wrapper, which has its own, cannot take it.
    config.model_args = {key: value for key, value in (config.model_args or {}).items() if key != "num_classes"}
    config.update(describe_architecture(config.architecture, **config.model_args))


def describe_architecture(architecture: str, **model_args) -> dict[str, int | list[int] | str]:
    """Builds the architecture on the meta device, without memory, and measures it."""
    with torch.device("meta"):
        model = create_model(architecture, num_classes=0, **model_args)
    if isinstance(model, Cait):
        num_blocks = len(model.blocks) + len(model.blocks_token_only)
        family = {"num_hidden_layers": num_blocks, "timm_family": CAIT_FAMILY}
    else:
        check_vit(model, architecture)
        family = {"num_hidden_layers": len(model.blocks), "num_prefix_tokens": model.num_prefix_tokens}
    rows, columns = model.patch_embed.grid_size
    height, width = model.patch_embed.img_size
    return {
        "hidden_size": model.embed_dim,
        "num_attention_heads": model.blocks[0].attn.num_heads,
        "image_size": [height, width],
        "patch_size": [height // rows, width // columns],
        **family,
    }


def check_vit(model: nn.Module, architecture: str) -> None:
    """
    Raises:
        ValueError: If a model of timm's is no Vision Transformer of standard blocks whose CLS token is read.
    """
    is_standard = isinstance(model, VisionTransformer) and all(
        type(block) is Block and type(block.attn) is Attention for block in model.blocks
    )
    if not is_standard:
        raise ValueError(
            f"DCAL cannot use timm's '{architecture}': it is not built from timm's standard Block and Attention, "
            "through which pairs of images are passed. Use a ViT, DeiT, DeiT-3, R50 hybrid, DINOv2, CLIP or CaiT of "
            "timm, or a Swin of transformers, microsoft/swin-tiny-patch4-window7-224 say."
        )
    if not model.has_class_token or isinstance(model.norm, nn.Identity):
        raise ValueError(
            f"DCAL cannot use timm's '{architecture}': it pools its patches, and DCAL reads a CLS token."
        )


__all__ = ["build_timm", "complete_timm_config", "embed_timm", "init_timm_weights", "timm_keys_values"]
