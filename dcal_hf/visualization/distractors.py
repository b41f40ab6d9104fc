"""Measures and draws how pair-wise cross-attention divides its attention between an image and its distractor."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from ..models.encoder_dcal import EncoderAdapter
from ..models.modeling_dcal import DCALPreTrainedModel
from .figures import ATTENTION_WIDTH
from .layout import HEADING_SIZE, MARGIN, Picture, add_axes, draw_picture, text_height
from .lettering import use_fonts, wrapped
from .overlays import photograph_overlay


# In inches: between the pictures, and for the numbers beside the chart and below it.
CELL_GAP, LABEL_ROOM = 0.15, 0.55


@dataclass
class DistractorAttention:
    """Attention of an image's CLS token in PWCA, averaged over the heads, in each block in which it is a query.

    Args:
        blocks (`list[int]` of length `T`): Numbers of the blocks, from 0.
        shares (`Tensor` of shape `(T,)`): Share of the attention on the distractor's tokens, from 0 to 1.
        own, distractor (`Tensor` of shape `(T, N)`): Attention on the patches of the image and of the distractor. With
            the prefix tokens of both, such as CLS, it sums to 1.
    """

    blocks: list[int]
    shares: Tensor
    own: Tensor
    distractor: Tensor


@torch.no_grad()
def distractor_attention(model: DCALPreTrainedModel, pixel_values: Tensor) -> DistractorAttention:
    """Measures the share of attention that an image gives to a distractor when PWCA pairs them as in training.

    `softmax(Q_1 [K_1;K_2]^T / sqrt(d))` (paper, section 3.3) in the last `config.num_pwca_blocks` blocks, in
    evaluation mode. The model need not be trained with PWCA, so that a baseline can be compared. Two images that are
    equal to a model get equal shares.

    Args:
        model (`DCALPreTrainedModel`):
            Any DCAL model whose encoder has a CLS token.
        pixel_values (`Tensor` of shape `(2, channels, height, width)`):
            The image and its distractor, as the image processor returns them.

    Raises:
        ValueError: If the encoder has no CLS token, or `pixel_values` are not two images of the model's size.
    """
    dcal = model.base_model
    encoder, num_paired_blocks = dcal.encoder, dcal.config.num_pwca_blocks
    if not encoder.has_cls:
        raise ValueError("The encoder has no CLS token, which this measurement needs.")
    if len(pixel_values) != 2:
        raise ValueError(f"pixel_values must be an image and its distractor, got {len(pixel_values)} images.")
    # In evaluation mode from the start: in training, the check would warn that PWCA needs pairs.
    was_training = model.training
    model.eval()
    try:
        dcal.check_inputs(pixel_values, has_pair=False, output_rollout=False)
        rows = _attention_rows(encoder, pixel_values, num_paired_blocks)
    finally:
        model.train(was_training)
    attention = torch.stack(list(rows.values())).float().cpu().unflatten(1, (2, -1))
    own, distractor = attention[:, :, encoder.num_prefix_tokens:].unbind(1)
    return DistractorAttention(list(rows), attention[:, 1].sum(dim=1), own, distractor)


def _attention_rows(encoder: EncoderAdapter, pixel_values: Tensor, num_paired_blocks: int) -> dict[int, Tensor]:
    """The attention of the first image's CLS token, (2 N,), by block."""
    tokens, rotary = encoder.embed(pixel_values), encoder.rotary(pixel_values)
    eager, rows = encoder.attend("eager"), {}
    for depth, block in enumerate(encoder.blocks):
        if depth < len(encoder.blocks) - num_paired_blocks:
            tokens = encoder.run(block, tokens, rotary, attend=eager)
        else:
            attend = _recording(eager, rows, depth)
            tokens = encoder.run(block, tokens, rotary, attend=attend, num_paired=2)
    return rows


def _recording(attend: Callable[..., tuple[Tensor, Tensor]], rows: dict[int, Tensor], depth: int) -> Callable:
    """Wraps an attention function that returns weights, (1, H, M, 2 N), to keep the first row's mean, (2 N,).

    CaiT's blocks without a CLS query compute their attention themselves and never call it.
    """

    def attend_and_record(*args, **kwargs) -> tuple[Tensor, Tensor]:
        output, weights = attend(*args, **kwargs)
        rows[depth] = weights[0, :, 0].mean(dim=0)
        return output, weights

    return attend_and_record


def distractor_figure(
    photograph: Image.Image,
    distractor: Image.Image,
    attention: DistractorAttention,
    grid: tuple[int, int],
    processor: BaseImageProcessor,
    titles: tuple[str, str] = ("image", "distractor"),
) -> Figure:
    """Draws the attention on an image and on its distractor, on one scale, and the distractor's share by block.

    Args:
        photograph, distractor (`PIL.Image.Image`):
            The photographs, of any sizes.
        attention (`DistractorAttention`):
            Of [`distractor_attention`]; the pictures show its mean over the blocks.
        grid (`tuple[int, int]`):
            Rows and columns of patches.
        processor (`BaseImageProcessor`):
            The image processor of the model.
        titles (`tuple[str, str]`, *optional*):
            Names of both.

    Returns:
        `matplotlib.figure.Figure`: the figure; [`save_figure`] writes it.
    """
    maps = torch.stack([attention.own, attention.distractor]).mean(dim=1)
    limits = (float(maps.min()), float(maps.max()))
    share = float(attention.shares.mean())
    headings = [
        wrapped(f"{title}\n{part:.0%} of the attention", ATTENTION_WIDTH, HEADING_SIZE)
        for title, part in zip(titles, (1 - share, share))
    ]
    top = MARGIN + text_height(headings, HEADING_SIZE)
    figure = Figure(figsize=(3 * ATTENTION_WIDTH + 2 * CELL_GAP + 2 * MARGIN, top + ATTENTION_WIDTH + MARGIN))
    lefts = [MARGIN + column * (ATTENTION_WIDTH + CELL_GAP) for column in range(3)]
    for left, image, patches, heading in zip(lefts, (photograph, distractor), maps, headings):
        picture = photograph_overlay(image, processor, patches, grid, limits=limits)
        cell = add_axes(figure, left, top, ATTENTION_WIDTH, ATTENTION_WIDTH)
        cell.set_anchor("N")
        draw_picture(cell, Picture(picture, heading=heading))
    side = ATTENTION_WIDTH - LABEL_ROOM
    chart = add_axes(figure, lefts[2] + LABEL_ROOM, top, side, side)
    chart.plot(np.array(attention.blocks) + 1, attention.shares, "o-", color="black")
    chart.axhline(0.5, color="0.6", linestyle=":")
    chart.set(ylim=(0, 1), xlabel="block")
    chart.set_title("the distractor's share", fontsize=HEADING_SIZE)
    chart.xaxis.set_major_locator(MaxNLocator(integer=True))
    chart.yaxis.set_major_formatter(PercentFormatter(1))
    return use_fonts(figure)


__all__ = ["DistractorAttention", "distractor_attention", "distractor_figure"]
