"""transformers' DINOv3, which applies rotary positions to queries and keys in each block."""

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.dinov3_vit import modeling_dinov3_vit

from .encoder_dcal import EncoderAdapter


class DINOv3Adapter(EncoderAdapter):
    """[CLS, registers, patches]."""

    eager_attention = staticmethod(modeling_dinov3_vit.eager_attention_forward)

    @classmethod
    def count_prefix_tokens(cls, config: PreTrainedConfig) -> int:
        return 1 + config.num_register_tokens

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.backbone.model.layer)

    @property
    def final_norm(self) -> nn.Module:
        return self.backbone.norm

    def attention(self, block: nn.Module) -> nn.Module:
        return block.attention

    def first_norm(self, block: nn.Module) -> nn.Module:
        return block.norm1

    def embed(self, pixel_values: Tensor) -> Tensor:
        return self.backbone.embeddings(pixel_values)

    def rotary(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rotary positions, each (N, d)."""
        # They have the precision of the pixels, and must have that of the queries and keys.
        return self.backbone.rope_embeddings(pixel_values.to(self.backbone.embeddings.patch_embeddings.weight.dtype))

    def rotate(self, key: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
        rotated, _ = modeling_dinov3_vit.apply_rotary_pos_emb(key, key, *rotary)
        return rotated


__all__ = ["DINOv3Adapter"]
