"""transformers' DINOv2, with and without registers."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.dinov2 import modeling_dinov2
from transformers.models.dinov2_with_registers import modeling_dinov2_with_registers

from .encoder_dcal import EncoderAdapter
from .offload_dcal import at_hand


class DINOv2Adapter(EncoderAdapter):
    """[CLS, patches]."""

    eager_attention = staticmethod(modeling_dinov2.eager_attention_forward)
    positions = "embeddings.position_embeddings"

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.backbone.encoder.layer)

    @property
    def final_norm(self) -> nn.Module:
        return self.backbone.layernorm

    def attention(self, block: nn.Module) -> nn.Module:
        return block.attention

    def first_norm(self, block: nn.Module) -> nn.Module:
        return block.norm1

    def embed(self, pixel_values: Tensor) -> Tensor:
        embeddings = self.backbone.embeddings
        with at_hand(embeddings):
            return embeddings.dropout(self.add_positions(pixel_values))

    def add_positions(self, pixel_values: Tensor) -> Tensor:
        """Same as DINOv2's own embedding, which would interpolate the positions of a non-square image."""
        embeddings = self.backbone.embeddings
        patches = embeddings.patch_embeddings(pixel_values)
        tokens = torch.cat([embeddings.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return tokens + embeddings.position_embeddings


class DINOv2WithRegistersAdapter(DINOv2Adapter):
    """[CLS, registers, patches]."""

    eager_attention = staticmethod(modeling_dinov2_with_registers.eager_attention_forward)
    antialias = True

    @classmethod
    def count_prefix_tokens(cls, config: PreTrainedConfig) -> int:
        return 1 + config.num_register_tokens

    def add_positions(self, pixel_values: Tensor) -> Tensor:
        """Inserts the registers, which have no position embeddings."""
        tokens = super().add_positions(pixel_values)
        registers = self.backbone.embeddings.register_tokens.expand(tokens.shape[0], -1, -1)
        return torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)


__all__ = ["DINOv2Adapter", "DINOv2WithRegistersAdapter"]
