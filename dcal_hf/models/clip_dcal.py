"""The image encoder of transformers' CLIP."""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.clip import modeling_clip

from .encoder_dcal import EncoderAdapter
from .offload_dcal import at_hand
from .positions_dcal import patch_grid


class CLIPAdapter(EncoderAdapter):
    """[CLS, patches]."""

    eager_attention = staticmethod(modeling_clip.eager_attention_forward)
    positions = "embeddings.position_embedding.weight"

    @classmethod
    def resized_config(cls, config: PreTrainedConfig, image_size: int | tuple[int, int] | None) -> PreTrainedConfig:
        """Leaves the size as it is: CLIP's field supports only squares, so `DCALConfig.image_size` is used instead."""
        return copy.deepcopy(config)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.backbone.encoder.layers)

    @property
    def final_norm(self) -> nn.Module:
        return self.backbone.post_layernorm

    def attention(self, block: nn.Module) -> nn.Module:
        return block.self_attn

    def first_norm(self, block: nn.Module) -> nn.Module:
        return block.layer_norm1

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Embeds and normalises the tokens; CLIP's own embedding supports only square images."""
        embeddings = self.backbone.embeddings
        patches = embeddings.patch_embedding(pixel_values.to(embeddings.patch_embedding.weight.dtype))
        patches = patches.flatten(2).transpose(1, 2)
        with at_hand(embeddings), at_hand(embeddings.position_embedding):
            tokens = torch.cat([embeddings.class_embedding.expand(patches.shape[0], 1, -1), patches], dim=1)
            tokens = tokens + embeddings.position_embedding.weight
        return self.backbone.pre_layrnorm(tokens)

    def prepare(self, image_size: tuple[int, int]) -> None:
        """Creates position embeddings for any image size; CLIP's configuration supports only square images."""
        embeddings = self.backbone.embeddings
        rows, columns = patch_grid(image_size, embeddings.patch_size)
        embeddings.num_positions = 1 + rows * columns
        embeddings.position_embedding = nn.Embedding(embeddings.num_positions, self.backbone.config.hidden_size)
        embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
        self.backbone.init_weights()


__all__ = ["CLIPAdapter"]
