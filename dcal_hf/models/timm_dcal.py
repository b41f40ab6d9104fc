"""timm's Vision Transformers with DCAL's attention function.

Supports the models that timm builds from its standard `Block` and `Attention`: ViT, DeiT, DeiT-3, the R50 hybrid,
DINOv2 and CLIP, also with registers, layer scale and qk-norm. Other timm architectures have their own files
(`cait_dcal`), whose adapters derive from [`TimmAdapter`]. The classes below keep timm's parameter names.
"""

import copy
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.vit import modeling_vit
from transformers.utils import is_timm_available, requires_backends

from .attention_dcal import ATTENTION_NAME, dcal_attention_forward
from .encoder_dcal import EncoderAdapter
from .offload_dcal import at_hand
from .timm_args_dcal import check_timm_args


if is_timm_available():
    from timm import create_model
    from timm.models.vision_transformer import Attention, Block, LayerScale, VisionTransformer
else:
    # Checkpoints with a transformers backbone load without timm.
    Attention = Block = LayerScale = VisionTransformer = nn.Module

# The model type of all timm architectures in transformers.
TIMM = "timm_wrapper"


class TimmAttention(Attention):
    """timm's self-attention, computed by `dcal_attention_forward`."""

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
        """Projects to a range of queries (0), keys (1) and values (2): (B, N, D) -> each (B, H, N, d)."""
        if isinstance(self.qkv, nn.Linear):
            rows = slice(start * self.attn_dim, stop * self.attn_dim)
            with at_hand(self.qkv):
                bias = None if self.qkv.bias is None else self.qkv.bias[rows]
                projected = nn.functional.linear(hidden_states, self.qkv.weight[rows], bias)
        else:
            # A PEFT adapter wraps the fused projection.
            projected = self.qkv(hidden_states)[..., start * self.attn_dim:stop * self.attn_dim]
        return projected.unflatten(2, (stop - start, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)


class TimmBlock(GradientCheckpointingLayer, Block):
    """timm's pre-norm block, with arguments for the attention and support for gradient checkpointing."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        attention = self.attn(self.norm1(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.drop_path1(self.ls1(attention))
        return hidden_states + self.drop_path2(self.ls2(self.mlp(self.norm2(hidden_states))))


class TimmAdapter(EncoderAdapter):
    """[CLS, (distillation, registers,) patches]. Base class for all timm architectures.

    Attributes:
        architecture (`type`): timm's model class.
        classes (`dict`): Arguments of its constructor that select DCAL's attention function.
    """

    # timm has no eager attention function: a flag selects its fused implementation.
    eager_attention = staticmethod(modeling_vit.eager_attention_forward)
    positions = "timm_model.pos_embed"
    antialias = True
    architecture: type[nn.Module] = VisionTransformer
    classes: dict[str, type[nn.Module]] = {"block_fn": TimmBlock, "attn_layer": TimmAttention}

    @classmethod
    def build(
        cls, config: PreTrainedConfig, image_size: tuple[int, int], drop_path_rate: float = 0.0
    ) -> "TimmAdapter":
        """Builds a new encoder with timm's own stochastic depth."""
        config = copy.deepcopy(config)
        model_args = config.model_args
        config.model_args = {**model_args, "img_size": image_size, "drop_path_rate": drop_path_rate, **cls.classes}
        encoder = cls(AutoModel.from_config(config, attn_implementation=ATTENTION_NAME))
        # Classes cannot be saved as JSON. With the image size, the encoder loads when saved on its own.
        encoder.backbone.config.model_args = {**model_args, "img_size": list(image_size)}
        encoder.prepare(image_size)
        return encoder

    @classmethod
    def read_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Adds the number of classes, which timm's own files have but an encoder's do not."""
        return {"num_classes": 2, **fields}

    @classmethod
    def describe(cls, model: nn.Module, name: str) -> dict[str, Any]:
        """Returns the configuration fields that timm derives from the name of the architecture.

        Raises:
            ValueError: If the model is not built from timm's standard blocks or has no CLS token.
        """
        if not all(type(block) is Block and type(block.attn) is Attention for block in model.blocks):
            raise_unsupported(name)
        if not model.has_class_token or isinstance(model.norm, nn.Identity):
            raise ValueError(f"DCAL cannot use timm's '{name}': it pools the patches, and DCAL needs a CLS token.")
        return {"num_hidden_layers": len(model.blocks), "num_prefix_tokens": model.num_prefix_tokens}

    @classmethod
    def count_prefix_tokens(cls, config: PreTrainedConfig) -> int:
        return config.num_prefix_tokens

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.backbone.timm_model.blocks)

    @property
    def final_norm(self) -> nn.Module:
        return self.backbone.timm_model.norm

    def attention(self, block: nn.Module) -> nn.Module:
        return block.attn

    def first_norm(self, block: nn.Module) -> nn.Module:
        return block.norm1

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Same as the first steps of timm's `forward_features`."""
        vit = self.backbone.timm_model
        patches = vit.patch_embed(pixel_values.to(vit.cls_token.dtype))
        with at_hand(vit):
            tokens = vit._pos_embed(patches)
        return vit.norm_pre(vit.patch_drop(tokens))

    def project(self, attention: nn.Module, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Projects to keys and values, without queries."""
        # The biases of EVA-02 are the attention's own.
        with at_hand(attention):
            key, value = attention.project(normed, 1, 3)
        return attention.k_norm(key), value

    def copy_last_block(self) -> nn.Module:
        """A plain copy: with `memory`, its attention does not project keys and values."""
        return copy.deepcopy(self.blocks[-1])

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        """Initialises the layer scale of a newly added GLCA block, which transformers' wrapper does not."""
        if isinstance(module, LayerScale):
            init.constant_(module.gamma, module.init_values)


def complete_timm_config(config: PreTrainedConfig, adapters: Mapping[str, type[TimmAdapter]]) -> str:
    """Adds the fields of a transformers ViT configuration, which timm derives from the name of the architecture.

    Builds the architecture on the meta device, without memory, to read its sizes. The arguments for timm are checked
    first, also if the configuration is already complete.

    Args:
        adapters (`Mapping`): The supported timm families, by name.

    Returns:
        The name of the family.

    Raises:
        ValueError: If the family is not supported, or if `check_timm_args` rejects the configuration.
    """
    check_timm_args(config)
    if not hasattr(config, "hidden_size"):
        requires_backends(config, ["timm"])
        # timm exports `num_classes` in `model_args`, but the wrapper passes its own.
        config.model_args = {key: value for key, value in (config.model_args or {}).items() if key != "num_classes"}
        with torch.device("meta"):
            model = create_model(config.architecture, num_classes=0, **config.model_args)
        adapter = next((adapter for adapter in adapters.values() if isinstance(model, adapter.architecture)), None)
        if adapter is None:
            raise_unsupported(config.architecture)
        config.update({**adapter.describe(model, config.architecture), **measure(model)})
    family = getattr(config, "timm_family", TIMM)
    if family not in adapters:
        raise ValueError(
            f"DCAL cannot use a backbone of type '{TIMM}' and family '{family}': the supported families are "
            f"{', '.join(adapters)}."
        )
    return family


def measure(model: nn.Module) -> dict[str, int | list[int]]:
    """Reads the sizes of a timm architecture."""
    rows, columns = model.patch_embed.grid_size
    height, width = model.patch_embed.img_size
    return {
        "hidden_size": model.embed_dim,
        "num_attention_heads": model.blocks[0].attn.num_heads,
        "image_size": [height, width],
        "patch_size": [height // rows, width // columns],
    }


def raise_unsupported(architecture: str) -> NoReturn:
    """
    Raises:
        ValueError: Always: pairs of images cannot be passed to the attention of this architecture.
    """
    raise ValueError(
        f"DCAL cannot use timm's '{architecture}': it is not built from timm's standard Block and Attention, which "
        "DCAL needs to pass pairs of images. Use a ViT, DeiT, DeiT-3, R50 hybrid, DINOv2, CLIP, CaiT or EVA-02 of "
        "timm, or a Swin of transformers, such as microsoft/swin-tiny-patch4-window7-224."
    )


__all__ = ["TIMM", "TimmAdapter", "complete_timm_config"]
