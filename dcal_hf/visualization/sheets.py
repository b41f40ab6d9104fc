"""Figures of many photographs: contact sheets, confusion matrices, attention of several models side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers import BaseImageProcessor

from .figures import draw_picture
from .overlays import photograph_overlay


SHEET_COLUMNS = 6
# With more classes, their names and counts are too small to read.
READABLE_CLASSES = 30


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
            Photographs with True get a green frame, with False a red one, with None none.

    Raises:
        ValueError: If there is no photograph, or the arguments differ in length.
    """
    correct = [None] * len(images) if correct is None else correct
    if not images or len({len(images), len(captions), len(correct)}) > 1:
        raise ValueError(
            "A contact sheet needs a caption and a mark for each of at least one image, got "
            f"{len(images)} images, {len(captions)} captions and {len(correct)} marks."
        )
    columns = min(SHEET_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in axes[len(images):]:
        cell.axis("off")
    for cell, image, caption, mark in zip(axes, images, captions, correct):
        draw_picture(cell, image, "", mark, caption)
    return figure


def confusion_figure(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Draws a confusion matrix whose rows, one per true class, are normalised by their number of images.

    Names and counts are written only if there are at most `READABLE_CLASSES` classes.

    Args:
        matrix (`np.ndarray` of shape `(classes, classes)`):
            Counts, one row per true class.
        names (`Sequence[str]` of length `classes`):
            The class names.
    """
    counts = np.asarray(matrix)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = 2.5 + 0.35 * min(len(names), READABLE_CLASSES)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    mappable = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(mappable, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true", xticks=[], yticks=[])
    if len(names) <= READABLE_CLASSES:
        places = range(len(names))
        axes.set_xticks(places, names, rotation=90, parse_math=False)
        axes.set_yticks(places, names, parse_math=False)
        for row, column in zip(*counts.nonzero()):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=color, fontsize="small")
    return figure


def attention_comparison(
    photographs: Sequence[Image.Image],
    rollouts: Mapping[str, np.ndarray | torch.Tensor],
    grids: Mapping[str, tuple[int, int]],
    processors: Mapping[str, BaseImageProcessor],
    titles: Mapping[str, Sequence[str]] | None = None,
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
            The title of each image, keyed by model name.
    """
    heights = [image.height / image.width for image in photographs]
    columns = 1 + len(rollouts)
    figure = Figure(figsize=(2.6 * columns, 2.6 * sum(heights) + 0.4 * len(photographs)), layout="constrained")
    axes = figure.subplots(len(photographs), columns, squeeze=False, height_ratios=heights)
    for cell, name in zip(axes[0], ["photograph", *rollouts], strict=True):
        cell.annotate(name, (0.5, 1.18), xycoords="axes fraction", ha="center", weight="bold")
    for number, (row, photograph) in enumerate(zip(axes, photographs, strict=True)):
        row[0].imshow(photograph)
        for cell, (name, rollout) in zip(row[1:], rollouts.items(), strict=True):
            cell.imshow(photograph_overlay(photograph, processors[name], rollout[number], grids[name]))
            if titles is not None:
                cell.set_title(titles[name][number], fontsize="small", parse_math=False)
        for cell in row:
            cell.set(xticks=[], yticks=[])
    return figure


__all__ = ["attention_comparison", "confusion_figure", "contact_sheet"]
