"""The seam between DCAL and a plain ViT: one small interface over encoders that name their parts differently.

A DCAL model never calls the backbone's own `forward`. It embeds the image, runs the blocks one by one (so that the
PWCA branch can join at any of them) and applies the final norm, all with the backbone's own modules and weights.
"""

import copy
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_dcal import ATTENTION_NAME, attention_flow
from .cait_dcal import CAIT_FAMILY, cait_blocks, cait_flow, class_keys_values, embed_cait, init_cait_weights
from .configuration_dcal import as_pair
from .swin_dcal import embed_swin, prepare_swin, swin_blocks, swin_parts
from .timm_dcal import build_timm, embed_timm, init_timm_weights, timm_keys_values


def embed_vit(backbone: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """ViT and DeiT: [CLS, (distillation,) patches]."""
    embeddings = backbone.embeddings
    return embeddings(pixel_values.to(embeddings.patch_embeddings.projection.weight.dtype))


def embed_dinov2(backbone: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """DINOv2: [CLS, (registers,) patches]; its own embedding takes every rectangle for a resized square."""
    embeddings = backbone.embeddings
    patches = embeddings.patch_embeddings(pixel_values)
    tokens = torch.cat([embeddings.cls_token.expand(len(patches), -1, -1), patches], dim=1)
    tokens = tokens + embeddings.position_embeddings
    if hasattr(embeddings, "register_tokens"):
        registers = embeddings.register_tokens.expand(len(patches), -1, -1)
        tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
    return embeddings.dropout(tokens)


def embed_dinov3(backbone: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """DINOv3: [CLS, registers, patches]; positions enter in the blocks, by rotation."""
    return backbone.embeddings(pixel_values)


def embed_clip(backbone: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """CLIP: [CLS, patches], normalised; its own embedding knows square images only."""
    embeddings = backbone.embeddings
    patches = embeddings.patch_embedding(pixel_values.to(embeddings.patch_embedding.weight.dtype))
    patches = patches.flatten(2).transpose(1, 2)
    tokens = torch.cat([embeddings.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
    return backbone.pre_layrnorm(tokens + embeddings.position_embedding.weight)


def split_keys_values(attention: nn.Module, normed: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values by a projection each: (B, N, D) -> twice (B, H, N, d)."""
    shape = (*normed.shape[:2], -1, attention.head_dim)
    projections = (getattr(proj, "of_memory", proj) for proj in (attention.k_proj, attention.v_proj))
    key, value = (project(normed).view(shape).transpose(1, 2) for project in projections)
    return key, value


class MemoryProjection(nn.Linear):
    """A key or value projection of a block whose keys and values are always another's: its own are not computed."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.new_zeros(()).expand(*hidden_states.shape[:-1], self.out_features)

    def of_memory(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states)


def expect_memory(attention: nn.Module) -> None:
    """Spares an attention with separate projections its own keys and values; parameters keep their names."""
    for name in ("k_proj", "v_proj"):
        if hasattr(attention, name):
            getattr(attention, name).__class__ = MemoryProjection


def prepare_clip(backbone: PreTrainedModel, image_size: tuple[int, int]) -> None:
    """Fresh position embeddings for any rectangle: CLIP's configuration knows square images only."""
    embeddings = backbone.embeddings
    rows, columns = (size // patch for size, patch in zip(image_size, as_pair(embeddings.patch_size)))
    embeddings.num_positions = 1 + rows * columns
    embeddings.position_embedding = nn.Embedding(embeddings.num_positions, backbone.config.hidden_size)
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    backbone.init_weights()


def nothing(*args) -> None:
    """Where a family needs no more than the others."""


def softmax_flow(attention: nn.Module) -> Callable[..., Tensor]:
    """The rollout passes through a block as through its softmax over all tokens."""
    return attention_flow


def whole(block: nn.Module) -> tuple[nn.Module, ...]:
    """A block is all there is of it."""
    return (block,)


@dataclass(frozen=True)
class Seam:
    """Where one family of encoders keeps the parts that DCAL needs.

    Args:
        blocks: Of the backbone, all its self-attention blocks, first block first.
        final_norm, positions: Attribute paths in the backbone; `positions` is None where none are added to the tokens.
        attention, first_norm: Attribute paths in a block.
        num_prefix_tokens: Tokens before the patches, from the backbone's configuration.
        embed: Image to the first block's input.
        has_cls: Whether the answer is read from the first token, CLS, or from the mean of all.
        has_rotary: Whether positions turn queries and keys of the patches.
        antialias: Whether this family smooths position embeddings when it shrinks them.
        project: A block's attention and its normed input to keys and values.
        flow: A block's attention to how the rollout passes through it, see `cls_rollout`.
        residual: Attribute path in a block of what ends its attention's branch, the attention itself if not given.
        parts: A block and what else, outside it, runs with it.
        has_pooler: Whether the backbone has one unless its constructor is told.
        prepare: What else the new backbone needs, for images of a size (height, width).
        init_weights: Initialises what of a module the backbone's own `_init_weights` leaves as it is.
    """

    blocks: Callable[[PreTrainedModel], Iterable[nn.Module]]
    final_norm: str
    positions: str | None
    attention: str
    first_norm: str
    num_prefix_tokens: Callable[[PreTrainedConfig], int]
    embed: Callable[[PreTrainedModel, Tensor], Tensor]
    has_cls: bool = True
    has_rotary: bool = False
    antialias: bool = False
    project: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]] = split_keys_values
    flow: Callable[[nn.Module], Callable[..., Tensor]] = softmax_flow
    residual: str | None = None
    parts: Callable[[nn.Module], tuple[nn.Module, ...]] = whole
    has_pooler: bool = False
    prepare: Callable[[PreTrainedModel, tuple[int, int]], None] = nothing
    init_weights: Callable[[nn.Module], None] = nothing

    def get_blocks(self, backbone: PreTrainedModel) -> list[nn.Module]:
        return list(self.blocks(backbone))

    def get_attention(self, block: nn.Module) -> nn.Module:
        return getattr(block, self.attention)

    def get_final_norm(self, backbone: PreTrainedModel) -> nn.Module:
        return attrgetter(self.final_norm)(backbone)

    def readout(self, tokens: Tensor) -> Tensor:
        """What stands for the image, (B, N, D) -> (B, D)."""
        return tokens[:, 0] if self.has_cls else tokens.mean(dim=1)

    def rotary(self, backbone: PreTrainedModel, pixel_values: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine of the patches' rotary positions, each (patches, d); None where nothing is turned."""
        return backbone.rope_embeddings(pixel_values) if self.has_rotary else None

    def keys_values(
        self, block: nn.Module, hidden_states: Tensor, rotary: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens for a block whose queries are only a few: (B, N, D) -> twice (B, H, N, d)."""
        attention = self.get_attention(block)
        key, value = self.project(attention, getattr(block, self.first_norm)(hidden_states))
        if rotary is not None:
            key, _ = module_of(attention).apply_rotary_pos_emb(key, key, *rotary)
        return key, value


VIT = Seam(
    blocks=lambda backbone: backbone.layers,
    final_norm="layernorm",
    positions="embeddings.position_embeddings",
    attention="attention",
    first_norm="layernorm_before",
    num_prefix_tokens=lambda config: 1,
    embed=embed_vit,
    has_pooler=True,
)
DINOV2 = Seam(
    blocks=lambda backbone: backbone.encoder.layer,
    final_norm="layernorm",
    positions="embeddings.position_embeddings",
    attention="attention",
    first_norm="norm1",
    num_prefix_tokens=lambda config: 1 + getattr(config, "num_register_tokens", 0),
    embed=embed_dinov2,
)
TIMM = Seam(
    blocks=lambda backbone: backbone.timm_model.blocks,
    final_norm="timm_model.norm",
    positions="timm_model.pos_embed",
    attention="attn",
    first_norm="norm1",
    num_prefix_tokens=lambda config: config.num_prefix_tokens,
    embed=embed_timm,
    antialias=True,
    project=timm_keys_values,
    init_weights=init_timm_weights,
)
SEAMS = {
    "vit": VIT,
    "deit": replace(VIT, num_prefix_tokens=lambda config: 2),
    "dinov2": DINOV2,
    "dinov2_with_registers": replace(DINOV2, antialias=True),
    "dinov3_vit": replace(
        DINOV2,
        blocks=lambda backbone: backbone.model.layer,
        final_norm="norm",
        positions=None,
        embed=embed_dinov3,
        has_rotary=True,
    ),
    "clip_vision_model": Seam(
        blocks=lambda backbone: backbone.encoder.layers,
        final_norm="post_layernorm",
        positions="embeddings.position_embedding.weight",
        attention="self_attn",
        first_norm="layer_norm1",
        num_prefix_tokens=lambda config: 1,
        embed=embed_clip,
        prepare=prepare_clip,
    ),
    "swin": replace(
        VIT,
        blocks=swin_blocks,
        num_prefix_tokens=lambda config: 0,
        embed=embed_swin,
        has_cls=False,
        residual="drop_path",
        parts=swin_parts,
        prepare=prepare_swin,
    ),
    "timm_wrapper": TIMM,
    CAIT_FAMILY: replace(
        TIMM,
        blocks=cait_blocks,
        num_prefix_tokens=lambda config: 1,
        embed=embed_cait,
        project=class_keys_values,
        flow=cait_flow,
        init_weights=init_cait_weights,
    ),
}


def find_seam(config: PreTrainedConfig) -> Seam:
    """That of the model type; `complete_timm_config` has told timm's families apart."""
    return SEAMS[getattr(config, "timm_family", config.model_type)]


def module_of(instance: nn.Module):
    """The Python module that defines the class of `instance`: each family has its own eager attention and rotation."""
    return sys.modules[type(instance).__module__]


def build_backbone(
    config: PreTrainedConfig, image_size: tuple[int, int], drop_path_rate: float = 0.0
) -> PreTrainedModel:
    """The plain encoder, without a pooler, attending through DCAL, with positions and stochastic depth."""
    if config.model_type == "timm_wrapper":
        return build_timm(config, image_size, drop_path_rate)
    seam = find_seam(config)
    pooler = {"add_pooling_layer": False} if seam.has_pooler else {}
    # A copy: the attention implementation is a field of the configuration, and this one is the backbone's alone.
    config = copy.deepcopy(config)
    if hasattr(config, "drop_path_rate"):
        # Its own would come on top of DCAL's, which every family has.
        config.drop_path_rate = 0.0
    backbone = AutoModel.from_config(config, attn_implementation=ATTENTION_NAME, **pooler)
    seam.prepare(backbone, image_size)
    add_stochastic_depth(backbone, seam, drop_path_rate)
    mask_token = getattr(backbone.embeddings, "mask_token", None)
    if mask_token is not None:
        # No loss ever reaches it: as a parameter it would make DistributedDataParallel wait for its gradient.
        del backbone.embeddings.mask_token
        backbone.embeddings.register_buffer("mask_token", mask_token.detach())
    return backbone


def run_block(block: nn.Module, hidden_states: Tensor, rotary: tuple[Tensor, Tensor] | None, **kwargs) -> Tensor:
    """One encoder block, with rotary positions if its family has them."""
    positions = {} if rotary is None else {"position_embeddings": rotary}
    return block(hidden_states, attention_mask=None, **positions, **kwargs)


def attention_function(implementation: str, block_attention: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function behind `attn_implementation`, with the block's own eager attention as its default."""
    eager = module_of(block_attention).eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)


@torch.no_grad()
def resize_positions(
    positions: Tensor, source: tuple[int, int], target: tuple[int, int], antialias: bool = False
) -> Tensor:
    """Bicubic resampling of position embeddings from one patch grid to another; prefix tokens keep theirs.

    The same arithmetic as `interpolate_pos_encoding=True` of transformers, done once instead of at every step.

    Args:
        positions (`Tensor` of shape `(..., prefix + source rows * columns, D)`)
        source, target (`(rows, columns)`)

    Returns:
        `Tensor` of shape `(..., prefix + target rows * columns, D)`.
    """
    if source == target:
        return positions
    table = positions.reshape(-1, positions.size(-1))
    prefix, patches = table[:-source[0] * source[1]], table[-source[0] * source[1]:]
    patches = patches.T.reshape(1, -1, *source).float()
    patches = nn.functional.interpolate(
        patches, size=target, mode="bicubic", align_corners=False, antialias=antialias
    )
    resized = torch.cat([prefix, patches.flatten(2)[0].T.to(table.dtype)])
    return resized.reshape(*positions.shape[:-2], *resized.shape)


class StochasticDepth:
    """Forward hook that drops a residual branch for whole samples (https://huggingface.co/papers/1603.09382).

    A hook on attention and FFN rather than a module: every encoder family gets it, whether or not it has a place for
    one, and the weights keep their names. A block's layer scale, which follows, commutes with it.
    """

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if not module.training:
            return output
        if isinstance(output, tuple):
            return (self.drop(output[0]), *output[1:])
        return self.drop(output)

    def drop(self, x: Tensor) -> Tensor:
        keep = x.new_empty(x.size(0), *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


def add_stochastic_depth(backbone: PreTrainedModel, seam: Seam, rate: float) -> None:
    """Drops both residual branches, at a rate that rises linearly from 0 at the first block to `rate` at the last."""
    blocks = seam.get_blocks(backbone)
    for depth, block in enumerate(blocks):
        if rate > 0 and depth > 0:
            for branch in (getattr(block, seam.residual or seam.attention), block.mlp):
                branch.register_forward_hook(StochasticDepth(rate * depth / (len(blocks) - 1)))


__all__ = ["SEAMS", "Seam", "build_backbone", "expect_memory", "find_seam", "resize_positions", "run_block"]
