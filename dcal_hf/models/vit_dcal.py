"""transformers' ViT and DeiT."""

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.deit import modeling_deit
from transformers.models.vit import modeling_vit

from .encoder_dcal import EncoderAdapter


class ViTAdapter(EncoderAdapter):
    """[CLS, patches]."""

    eager_attention = staticmethod(modeling_vit.eager_attention_forward)
    positions = "embeddings.position_embeddings"
    has_pooler = True

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.backbone.layers)

    @property
    def final_norm(self) -> nn.Module:
        return self.backbone.layernorm

    def attention(self, block: nn.Module) -> nn.Module:
        return block.attention

    def first_norm(self, block: nn.Module) -> nn.Module:
        return block.layernorm_before

    def embed(self, pixel_values: Tensor) -> Tensor:
        embeddings = self.backbone.embeddings
        return embeddings(pixel_values.to(embeddings.patch_embeddings.projection.weight.dtype))


class DeiTAdapter(ViTAdapter):
    """[CLS, distillation, patches]."""

    eager_attention = staticmethod(modeling_deit.eager_attention_forward)

    @classmethod
    def count_prefix_tokens(cls, config: PreTrainedConfig) -> int:
        return 2


__all__ = ["DeiTAdapter", "ViTAdapter"]
