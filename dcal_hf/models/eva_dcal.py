"""timm's EVA-02 with DCAL's attention function.

Paper: EVA-02: A Visual Representation for Neon Genesis (https://huggingface.co/papers/2303.11331). Tokens have
absolute position embeddings; each block applies rotary ones to queries and keys of the patches. timm's constructor
takes no block classes, so the class of each block is set afterwards. Parameters keep their names.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_timm_available

from .attention_dcal import dcal_attention_forward
from .offload_dcal import at_hand
from .timm_dcal import TimmAdapter


if is_timm_available():
    from timm.layers import RotaryEmbeddingCat, apply_rot_embed_cat
    from timm.models.eva import Eva, EvaAttention, EvaBlock
else:
    # Checkpoints with a transformers backbone load without timm.
    Eva = EvaAttention = EvaBlock = nn.Module


class PairedEvaAttention(EvaAttention):
    """timm's self-attention, computed by `dcal_attention_forward`."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, ...] | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D); `memory` and `kwargs` are those of `dcal_attention_forward`."""
        if memory is None:
            query, key, value = self.project(hidden_states, 0, 3)
            key = self.apply_rotary(self.k_norm(key), position_embeddings)
        else:
            (query,) = self.project(hidden_states, 0, 1)
            key, value = memory
        output, _ = dcal_attention_forward(
            self,
            self.apply_rotary(self.q_norm(query), position_embeddings),
            key,
            value,
            attention_mask,
            scaling=self.scale,
            dropout=self.attn_drop.p if self.training else 0.0,
            **kwargs,
        )
        return self.proj_drop(self.proj(self.norm(output.flatten(2))))

    def project(self, hidden_states: Tensor, start: int, stop: int) -> list[Tensor]:
        """Projects to a range of queries (0), keys (1) and values (2): (B, N, D) -> each (B, H, N, d)."""
        if self.qkv is None:
            layers = (self.q_proj, self.k_proj, self.v_proj)[start:stop]
            projected = [layer(hidden_states) for layer in layers]
        else:
            projected = self.project_fused(hidden_states, start, stop).chunk(stop - start, dim=2)
        return [x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in projected]

    def project_fused(self, hidden_states: Tensor, start: int, stop: int) -> Tensor:
        """Applies these rows of the fused projection, (B, N, D) -> (B, N, (stop - start) * D)."""
        rows = slice(start * self.proj.in_features, stop * self.proj.in_features)
        bias = None
        if self.q_bias is not None:
            bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])[rows]
        if isinstance(self.qkv, nn.Linear):
            with at_hand(self.qkv):
                return nn.functional.linear(hidden_states, self.qkv.weight[rows], bias)
        # A LoRA layer wraps the fused projection.
        projected = self.qkv(hidden_states)[..., rows]
        return projected if bias is None else projected + bias

    def apply_rotary(self, x: Tensor, position_embeddings: tuple[Tensor, ...] | None) -> Tensor:
        """Applies rotary positions to the patches' queries or keys, (B, H, prefix + N, d)."""
        if position_embeddings is None:
            return x
        (sine_cosine,) = position_embeddings
        prefix, patches = x.tensor_split([x.size(2) - sine_cosine.size(-2)], dim=2)
        rotated = apply_rot_embed_cat(patches, sine_cosine, half=self.rotate_half)
        return torch.cat([prefix, rotated], dim=2).type_as(x)


class PairedEvaBlock(GradientCheckpointingLayer, EvaBlock):
    """timm's pre-norm block, with arguments for the attention and support for gradient checkpointing."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        attention = self.attn(self.norm1(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.drop_path1(self.scale(attention, self.gamma_1))
        mlp = self.mlp(self.norm2(hidden_states))
        return hidden_states + self.drop_path2(self.scale(mlp, self.gamma_2))

    @staticmethod
    def scale(branch: Tensor, gamma: Tensor | None) -> Tensor:
        return branch if gamma is None else gamma * branch


class EvaAdapter(TimmAdapter):
    """[CLS, patches]."""

    architecture = Eva
    classes = {}

    @classmethod
    def describe(cls, model: nn.Module, name: str) -> dict[str, Any]:
        """
        Raises:
            ValueError: If the model is another architecture that timm builds with the same class.
        """
        is_eva = all(type(block) is EvaBlock and type(block.attn) is EvaAttention for block in model.blocks)
        is_rotary = type(model.rope) is RotaryEmbeddingCat
        num_norms = sum(not isinstance(norm, nn.Identity) for norm in (model.norm, model.fc_norm))
        if not (is_eva and is_rotary and model.cls_token is not None and model.patch_drop is None and num_norms == 1):
            raise ValueError(
                f"DCAL cannot use timm's '{name}': it has the model class of EVA-02, but not EVA-02's blocks, rotary "
                "positions, CLS token and single final norm."
            )
        blocks = {"num_hidden_layers": len(model.blocks), "num_prefix_tokens": model.num_prefix_tokens}
        return {**blocks, "timm_family": "timm_eva"}

    @property
    def final_norm(self) -> nn.Module:
        """If timm pools the tokens, it applies `fc_norm` after pooling; DCAL applies it before reading CLS."""
        eva = self.backbone.timm_model
        return eva.fc_norm if isinstance(eva.norm, nn.Identity) else eva.norm

    def prepare(self, image_size: tuple[int, int]) -> None:
        for block in self.blocks:
            block.__class__, block.attn.__class__ = PairedEvaBlock, PairedEvaAttention

    def embed(self, pixel_values: Tensor) -> Tensor:
        eva = self.backbone.timm_model
        patches = eva.patch_embed(pixel_values.to(eva.cls_token.dtype))
        with at_hand(eva):
            tokens, _ = eva._pos_embed(patches)
        return eva.norm_pre(tokens)

    def rotary(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Sine and cosine in one tensor, (N, 2d)."""
        return (self.backbone.timm_model.rope.get_embed(),)

    def rotate(self, key: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
        return self.attention(self.blocks[-1]).apply_rotary(key, rotary)

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        """Initialises the biases and the layer scale of a newly added GLCA block."""
        if isinstance(module, EvaAttention) and module.q_bias is not None:
            init.zeros_(module.q_bias)
            init.zeros_(module.v_bias)
        if isinstance(module, EvaBlock):
            for gamma in (module.gamma_1, module.gamma_2):
                if gamma is not None:
                    init.constant_(gamma, module.init_values)


__all__ = ["EvaAdapter"]
