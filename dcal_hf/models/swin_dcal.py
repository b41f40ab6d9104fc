"""transformers' Swin, whose windows meet the windows of another image: what `encoder_dcal` needs to know of it.

Paper: Swin Transformer, ICCV 2021 (https://huggingface.co/papers/2103.14030). It has no CLS token: there are SA and
PWCA, both read from the mean of the tokens, but neither rollout nor GLCA.
"""

from collections.abc import Iterator

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.swin.modeling_swin import SwinLayer


class SwinBlock(SwinLayer):
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
        # `always_partition`: `prepare_swin` has fixed the windows.
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


def prepare_swin(backbone: PreTrainedModel, image_size: tuple[int, int]) -> None:
    """Makes SwinBlocks of the layers, whose windows fit their grid.

    A grid as narrow as a window is not shifted, as ever. One that is narrower is padded to a window, which Swin does
    with `always_partition` alone: else it narrows the window, for which its bias of relative positions has no size.
    """
    for stage in backbone.encoder.layers:
        for block in stage.blocks:
            block.__class__ = SwinBlock
            if min(block.input_resolution) == block.window_size:
                block.shift_size = 0
        if stage.downsample is not None:
            stage.blocks[-1].merging = (stage.downsample,)


def swin_blocks(backbone: PreTrainedModel) -> Iterator[SwinBlock]:
    """The blocks of all stages."""
    return (block for stage in backbone.encoder.layers for block in stage.blocks)


def swin_parts(block: SwinBlock) -> tuple[nn.Module, ...]:
    """A block and what merges the patches behind it."""
    return block, *block.merging


def embed_swin(backbone: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Patches alone; positions are in the attention, unless the configuration has absolute ones as well."""
    embeddings = backbone.embeddings
    tokens, _ = embeddings(pixel_values.to(embeddings.patch_embeddings.projection.weight.dtype))
    return tokens


__all__ = ["embed_swin", "prepare_swin", "swin_blocks", "swin_parts"]
