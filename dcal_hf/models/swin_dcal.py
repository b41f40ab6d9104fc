"""transformers' Swin, whose windows also attend to the same windows of another image.

Paper: Swin Transformer, ICCV 2021 (https://huggingface.co/papers/2103.14030). Swin has no CLS token, so it supports SA
and PWCA, both read out as the mean of the tokens, but not the rollout or GLCA.
"""

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.swin import modeling_swin

from .encoder_dcal import EncoderAdapter
from .positions_dcal import as_pair


class SwinBlock(modeling_swin.SwinLayer):
    """transformers' Swin layer with a fixed grid and support for pairs; the last one of a stage also merges patches.

    Attributes:
        merging (`tuple` of `nn.Module`): The patch merging after the block, at the end of most stages. In a tuple, so
            that the module stays registered in the stage only and its parameters keep their names.
    """

    merging: tuple[nn.Module, ...] = ()

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        num_paired: int = 0,
        **kwargs,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, N / 4, 2D) at the end of most stages; `attention_mask` is not used."""
        # The batch dimension of the attention holds the windows, image by image.
        windows = {"windows": self.num_windows, "num_paired": num_paired * self.num_windows}
        # `always_partition` keeps the windows that `SwinAdapter.prepare` has set.
        hidden_states, _ = super().forward(
            hidden_states, self.input_resolution, always_partition=True, **windows, **kwargs
        )
        for merge in self.merging:
            hidden_states = merge(hidden_states, self.input_resolution)
        return hidden_states

    @property
    def num_windows(self) -> int:
        """The number of windows per image; windows at the bottom and right border are padded."""
        rows, columns = (-(-size // self.window_size) for size in self.input_resolution)
        return rows * columns


class SwinAdapter(EncoderAdapter):
    """Patches only, in stages; between two stages, four patches are merged into one."""

    eager_attention = staticmethod(modeling_swin.eager_attention_forward)
    positions = "embeddings.position_embeddings"
    has_cls = False
    has_pooler = True

    @classmethod
    def num_layers(cls, config: PreTrainedConfig) -> int:
        """The number of blocks in all stages."""
        return sum(config.depths)

    @classmethod
    def stride(cls, config: PreTrainedConfig) -> tuple[int, int]:
        """The stride of the last stage."""
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
        """`drop_path`, because the attention outputs windows and `drop_path` receives whole images."""
        return block.drop_path

    def parts(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """A block and the patch merging after it."""
        return block, *block.merging

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Embeds the patches; adds absolute positions only if the configuration has them."""
        embeddings = self.backbone.embeddings
        tokens, _ = embeddings(pixel_values.to(embeddings.patch_embeddings.projection.weight.dtype))
        return tokens

    def prepare(self, image_size: tuple[int, int]) -> None:
        """Converts the layers to `SwinBlock`s whose windows fit their grid.

        A grid as narrow as a window is not shifted, as in Swin. A narrower grid is padded to a window, which Swin does
        only with `always_partition`. Otherwise it shrinks the window, which no longer fits its relative position bias.
        """
        for stage in self.backbone.encoder.layers:
            for block in stage.blocks:
                block.__class__ = SwinBlock
                if min(block.input_resolution) == block.window_size:
                    block.shift_size = 0
            if stage.downsample is not None:
                stage.blocks[-1].merging = (stage.downsample,)


__all__ = ["SwinAdapter", "SwinBlock"]
