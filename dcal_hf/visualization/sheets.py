"""Figures of many photographs: contact sheets, and attention of several models side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers import BaseImageProcessor

from .layout import Picture, picture_figure
from .overlays import photograph_overlay


SHEET_COLUMNS = 6
# In inches: the cells.
SHEET_WIDTH, TABLE_WIDTH = 1.9, 2


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], correct: Sequence[bool | None] | None = None
) -> Figure:
    """Draws photographs in rows of six, each with its caption.

    Args:
        images (`Sequence[PIL.Image.Image]` of length `B`):
            The photographs, of any sizes.
        captions (`Sequence[str]` of length `B`):
            Written below each photograph.
        correct (`Sequence[bool | None]` of length `B`, *optional*):
            Photographs with True get a green frame with a tick, with False a red one with a cross, with None none.

    Raises:
        ValueError: If there is no photograph, or the arguments differ in length.
    """
    correct = [None] * len(images) if correct is None else correct
    if not images or len({len(images), len(captions), len(correct)}) > 1:
        raise ValueError(
            "A contact sheet needs a caption and a mark for each of at least one image, got "
            f"{len(images)} images, {len(captions)} captions and {len(correct)} marks."
        )
    pictures = [Picture(*facts) for facts in zip(images, correct, captions)]
    rows = [pictures[start:start + SHEET_COLUMNS] for start in range(0, len(pictures), SHEET_COLUMNS)]
    return picture_figure(rows, SHEET_WIDTH)


def attention_comparison(
    photographs: Sequence[Image.Image],
    rollouts: Mapping[str, np.ndarray | torch.Tensor],
    grids: Mapping[str, tuple[int, int]],
    processors: Mapping[str, BaseImageProcessor],
    titles: Mapping[str, Sequence[str]] | None = None,
    correct: Mapping[str, Sequence[bool | None]] | None = None,
    photograph_titles: Sequence[str] | None = None,
) -> Figure:
    """Draws the attention of several models on the same photographs: a row per photograph, a column per model.

    Args:
        photographs (`Sequence[PIL.Image.Image]` of length `B`):
            The photographs, of any sizes.
        rollouts (`Mapping`):
            Attention rollouts over patches, each of shape `(B, N)`, keyed by model name.
        grids, processors (`Mapping`):
            Rows and columns of patches, and image processors, keyed by model name.
        titles (`Mapping`, *optional*):
            What each model says of each photograph, keyed by model name; written below it.
        correct (`Mapping`, *optional*):
            Whether that is right (a green frame with a tick), wrong (red, a cross) or not known (None), keyed by model
            name.
        photograph_titles (`Sequence[str]` of length `B`, *optional*):
            Written below the photographs, such as their names.
    """
    blank = [""] * len(photographs)
    texts = [blank if photograph_titles is None else photograph_titles]
    texts += [blank if titles is None else titles[name] for name in rollouts]
    marks = [[None] * len(photographs) if correct is None else correct[name] for name in rollouts]
    columns = [[(photograph, text, None) for photograph, text in zip(photographs, texts[0], strict=True)]]
    for (name, rollout), names, column in zip(rollouts.items(), texts[1:], marks, strict=True):
        overlays = [
            photograph_overlay(photograph, processors[name], values, grids[name])
            for photograph, values in zip(photographs, rollout, strict=True)
        ]
        columns.append(list(zip(overlays, names, column, strict=True)))
    return picture_table(list(zip(*columns)), ["photograph", *rollouts])


def picture_table(
    rows: Sequence[Sequence[tuple[Image.Image, str, bool | None] | None]], headings: Sequence[str]
) -> Figure:
    """Draws pictures in rows and columns.

    Args:
        rows (`Sequence` of `Sequence` of tuples):
            Of each picture, the image, its caption and its mark: True for a green frame with a tick, False for a red
            one with a cross, None for none. None leaves a gap.
        headings (`Sequence[str]`):
            The names of the columns.

    Raises:
        ValueError: If there is no row, or a row has not one picture or gap for each heading.
    """
    if not rows or any(len(row) != len(headings) for row in rows):
        raise ValueError(
            f"A table of {len(headings)} columns needs a picture or None for each in at least one row, got rows of "
            f"{[*map(len, rows)]}."
        )
    pictures = [
        [cell and Picture(image=cell[0], caption=cell[1], mark=cell[2]) for cell in row] for row in rows
    ]
    return picture_figure(pictures, TABLE_WIDTH, headings=headings)


__all__ = ["attention_comparison", "contact_sheet", "picture_table"]
