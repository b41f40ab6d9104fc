"""transformers' Swin, whose windows meet the windows of another image.

Paper: Swin Transformer, ICCV 2021 (https://huggingface.co/papers/2103.14030). It has no CLS token: there are SA and
PWCA, both read from the mean of the tokens, but neither rollout nor GLCA.
"""

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.swin import modeling_swin

from .encoder_dcal import EncoderAdapter
from .positions_dcal import as_pair


class SwinBlock(modeling_swin.SwinLayer):
    """transformers' layer, which knows its grid, takes pairs of images, and ends its stage if it is the last in it.

    Attributes:
        merging (`tuple` of `nn.Module`): What merges the patches behind the block, at the end of most stages. In a
            tuple, because it is the stage's own: its parameters keep their names.
    """

    merging: tuple[nn.Module, ...] = ()

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        num_paired: int = 0,
        **kwargs,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), at the end of most stages (B, N / 4, 2D); there is no `attention_mask` to pass."""
        # Windows lie along the batch, image after image.
        windows = {"windows": self.num_windows, "num_paired": num_paired * self.num_windows}
        # `always_partition`: `SwinAdapter.prepare` has fixed the windows.
        hidden_states, _ = super().forward(
            hidden_states, self.input_resolution, always_partition=True, **windows, **kwargs
        )
        for merge in self.merging:
            hidden_states = merge(hidden_states, self.input_resolution)
        return hidden_states

    @property
    def num_windows(self) -> int:
        """Windows of an image; those at the lower and right border are padded."""
        rows, columns = (-(-size // self.window_size) for size in self.input_resolution)
        return rows * columns


class SwinAdapter(EncoderAdapter):
    """Patches alone, in stages: from one to the next four patches become one."""

    eager_attention = staticmethod(modeling_swin.eager_attention_forward)
    positions = "embeddings.position_embeddings"
    has_cls = False
    has_pooler = True

    @classmethod
    def num_layers(cls, config: PreTrainedConfig) -> int:
        """The blocks of all stages."""
        return sum(config.depths)

    @classmethod
    def stride(cls, config: PreTrainedConfig) -> tuple[int, int]:
        """That of the last stage."""
        height, width = as_pair(config.patch_size)
        merging = 2 ** (len(config.depths) - 1)
        return height * merging, width * merging

    @classmethod
    def count_prefix_tokens(cls, config: PreTrainedConfig) -> int:
        return 0

    @property
    def blocks(self) -> list[nn.Module]:
        return [block for stage in self.backbone.encoder.layers for block in stage.blocks]

    @property
    def final_norm(self) -> nn.Module:
        return self.backbone.layernorm

    def attention(self, block: nn.Module) -> nn.Module:
        return block.attention

    def first_norm(self, block: nn.Module) -> nn.Module:
        return block.layernorm_before

    def residual(self, block: nn.Module) -> nn.Module:
        """Behind the attention windows become images again."""
        return block.drop_path

    def parts(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """A block and what merges the patches behind it."""
        return block, *block.merging

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Positions are in the attention, unless the configuration has absolute ones as well."""
        embeddings = self.backbone.embeddings
        tokens, _ = embeddings(pixel_values.to(embeddings.patch_embeddings.projection.weight.dtype))
        return tokens

    def prepare(self, image_size: tuple[int, int]) -> None:
        """Makes SwinBlocks of the layers, whose windows fit their grid.

        A grid as narrow as a window is not shifted, as ever. One that is narrower is padded to a window, which Swin
        does with `always_partition` alone: else it narrows the window, for which its bias of relative positions has no
        size.
        """
        for stage in self.backbone.encoder.layers:
            for block in stage.blocks:
                block.__class__ = SwinBlock
                if min(block.input_resolution) == block.window_size:
                    block.shift_size = 0
            if stage.downsample is not None:
                stage.blocks[-1].merging = (stage.downsample,)


__all__ = ["SwinAdapter", "SwinBlock"]
