"""timm's CaiT with DCAL's attention function.

Paper: Going deeper with Image Transformers, ICCV 2021 (https://huggingface.co/papers/2103.17239). Blocks with
talking-heads attention process only the patches. A few blocks with class attention follow: CLS is the only query, and
keys and values come from all tokens. Here every block maps [CLS, patches] to [CLS, patches] and passes the tokens that
it does not process through, so that DCAL treats both kinds like any other block. GLCA copies the last block: it is
class attention with other queries. The classes below keep timm's parameter names.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_timm_available

from .attention_dcal import attention_flow, dcal_attention_forward
from .offload_dcal import at_hand
from .timm_dcal import TimmAdapter


if is_timm_available():
    from timm.models.cait import Cait, ClassAttn, LayerScaleBlock, LayerScaleBlockClassAttn, TalkingHeadAttn
else:
    # Checkpoints with a transformers backbone load without timm.
    Cait = ClassAttn = LayerScaleBlock = LayerScaleBlockClassAttn = TalkingHeadAttn = nn.Module


def mix_heads(mixing: nn.Module, x: Tensor) -> Tensor:
    """Applies a linear layer over the heads, (B, H, M, N) -> (B, H, M, N)."""
    return mixing(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def attend_talking(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    num_patches: int,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """`W softmax(L s Q K^T) V`, where L and W mix the heads (https://huggingface.co/papers/2003.02436), as in timm.

    W adds its bias to every key. With the keys of two images the bias is halved, `W P + b / 2 = (W 2P + b) / 2`, so
    that pairing an image with itself equals self-attention.

    Args:
        num_patches (`int`): The number of patches of one image.

    Returns:
        Output (B, M, H, d) and weights (B, H, M, N or 2N), as transformers' attention functions do.
    """
    images = key.size(2) // num_patches
    logits = mix_heads(module.proj_l, (query * scaling) @ key.transpose(2, 3))
    weights = module.attn_drop(mix_heads(module.proj_w, images * logits.softmax(dim=-1)))
    return (weights @ (value / images)).transpose(1, 2), weights


def to_heads(x: Tensor, num_heads: int) -> Tensor:
    """Splits the heads, (B, N, D) -> (B, H, N, d)."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


class TalkingHeadsAttention(TalkingHeadAttn):
    """timm's talking-heads self-attention of the patches; fused implementations cannot mix heads."""

    def forward(
        self, patches: Tensor, attention_mask: None = None, attend: Callable | None = None, **kwargs
    ) -> Tensor:
        """(B, N, D) -> (B, N, D); ignores `attend`, the user's implementation, which only class attention can use."""
        query, key, value = (to_heads(x, self.num_heads) for x in self.qkv(patches).chunk(3, dim=2))
        attend_patches = partial(attend_talking, num_patches=patches.size(1))
        output, _ = dcal_attention_forward(
            self, query, key, value, attend=attend_patches, scaling=self.scale, **kwargs
        )
        return self.proj_drop(self.proj(output.flatten(2)))


class TalkingHeadsBlock(GradientCheckpointingLayer, LayerScaleBlock):
    """timm's block with talking-heads attention; CLS passes through unchanged."""

    def forward(self, hidden_states: Tensor, attention_mask: None = None, **kwargs) -> Tensor:
        """[CLS, patches] -> [CLS, patches], (B, 1 + N, D)."""
        cls, patches = hidden_states[:, :1], hidden_states[:, 1:]
        patches = patches + self.drop_path(self.gamma_1 * self.attn(self.norm1(patches), **kwargs))
        patches = patches + self.drop_path(self.gamma_2 * self.mlp(self.norm2(patches)))
        return torch.cat([cls, patches], dim=1)


class ClassAttention(ClassAttn):
    """timm's class attention, computed by `dcal_attention_forward`."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        **kwargs,
    ) -> Tensor:
        """CLS is the query, (B, 1 + N, D) -> (B, 1, D); with `memory`, all tokens are, (B, R, D) -> (B, R, D)."""
        queries = hidden_states[:, :1] if memory is None else hidden_states
        key, value = class_keys_values(self, hidden_states) if memory is None else memory
        output, _ = dcal_attention_forward(
            self,
            to_heads(self.q(queries), self.num_heads),
            key,
            value,
            scaling=self.scale,
            dropout=self.attn_drop.p if self.training else 0.0,
            **kwargs,
        )
        return self.proj_drop(self.proj(output.flatten(2)))


class ClassBlock(GradientCheckpointingLayer, LayerScaleBlockClassAttn):
    """timm's block with class attention; the patches pass through unchanged."""

    def __init__(self, *args, init_values: float, **kwargs):
        super().__init__(*args, init_values=init_values, **kwargs)
        self.init_values = init_values

    def forward(self, hidden_states: Tensor, attention_mask: None = None, **kwargs) -> Tensor:
        """[CLS, patches] -> [CLS, patches], (B, 1 + N, D); with `memory`, all tokens are queries."""
        attention = self.attn(self.norm1(hidden_states), **kwargs)
        queries, others = hidden_states[:, :attention.size(1)], hidden_states[:, attention.size(1):]
        queries = queries + self.drop_path(self.gamma_1 * attention)
        queries = queries + self.drop_path(self.gamma_2 * self.mlp(self.norm2(queries)))
        return torch.cat([queries, others], dim=1)


def class_keys_values(attention: ClassAttention, normed: Tensor) -> tuple[Tensor, Tensor]:
    """Projects all tokens to keys and values: (B, 1 + N, D) -> twice (B, H, 1 + N, d)."""
    return to_heads(attention.k(normed), attention.num_heads), to_heads(attention.v(normed), attention.num_heads)


def talking_flow(
    attention: TalkingHeadsAttention, flow: Tensor, query: Tensor, key: Tensor, scaling: float
) -> Tensor:
    """`v S`, with S the identity for CLS and the head mean of the softmax for patches, (B, 1 + N) -> (B, 1 + N).

    The softmax is taken before W mixes the heads: its rows are non-negative and sum to one, as the rollout requires.
    """
    with torch.autocast(flow.device.type, enabled=False):
        logits = (query.float() * scaling) @ key.float().transpose(2, 3)
        weights = mix_heads(attention.proj_l, logits.to(attention.proj_l.weight.dtype)).float().softmax(dim=-1)
        patches = (flow[:, None, None, 1:] @ weights).mean(dim=1)[:, 0]
    return torch.cat([flow[:, :1], patches], dim=1)


def class_flow(flow: Tensor, query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """`v S`, with S the class attention for CLS and the identity for patches, (B, 1 + N) -> (B, 1 + N)."""
    cls_flow = attention_flow(flow[:, :1], query, key, scaling)
    return cls_flow + torch.cat([torch.zeros_like(flow[:, :1]), flow[:, 1:]], dim=1)


class CaiTAdapter(TimmAdapter):
    """[CLS, patches]; only the patches have position embeddings."""

    architecture = Cait
    classes = {
        "block_layers": TalkingHeadsBlock,
        "attn_block": TalkingHeadsAttention,
        "block_layers_token": ClassBlock,
        "attn_block_token_only": ClassAttention,
    }
    rollout_reads_weights = True

    @classmethod
    def describe(cls, model: nn.Module, name: str) -> dict[str, Any]:
        return {"num_hidden_layers": len(model.blocks) + len(model.blocks_token_only), "timm_family": "timm_cait"}

    @classmethod
    def count_prefix_tokens(cls, config: PreTrainedConfig) -> int:
        return 1

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks with talking-heads attention, then those with class attention."""
        cait = self.backbone.timm_model
        return [*cait.blocks, *cait.blocks_token_only]

    def embed(self, pixel_values: Tensor) -> Tensor:
        cait = self.backbone.timm_model
        with at_hand(cait):
            patches = cait.pos_drop(cait.patch_embed(pixel_values.to(cait.cls_token.dtype)) + cait.pos_embed)
            return torch.cat([cait.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)

    def project(self, attention: nn.Module, normed: Tensor) -> tuple[Tensor, Tensor]:
        return class_keys_values(attention, normed)

    def flow(self, block: nn.Module) -> Callable[..., Tensor]:
        return partial(talking_flow, block.attn) if isinstance(block, TalkingHeadsBlock) else class_flow

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        """Initialises the layer scale of a newly added GLCA block."""
        if isinstance(module, ClassBlock):
            init.constant_(module.gamma_1, module.init_values)
            init.constant_(module.gamma_2, module.init_values)


__all__ = ["CaiTAdapter", "ClassBlock"]
