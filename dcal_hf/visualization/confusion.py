"""Figures of confusion matrices."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter

from .layout import CAPTION_SIZE, HEADING_SIZE, add_axes
from .lettering import legible, shortened, text_width, use_fonts


# Confusion matrices of more classes have no names and counts but those of the most confused classes.
NAMED_CLASSES, CONFUSED_CLASSES = 40, 30
# In inches: the smallest cell of a confusion matrix, the sides of the smallest matrix and of one without names.
CELL_SIDE, MIN_SIDE, OVERVIEW_SIDE = 0.3, 3, 4.5
# In inches: around it, and for the bar of its colours.
LABEL_HEIGHT, BAR_WIDTH = 0.4, 1.5
# A few confusions among many images of a class are to be seen, too.
CONFUSION_COLORS = {"cmap": "Blues", "norm": PowerNorm(0.5, 0, 1)}


def confusion_figure(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Draws a confusion matrix whose rows, one per true class, are normalised by their number of images.

    With more than `NAMED_CLASSES` classes, names and counts would be too small to read. Then they are written for the
    `CONFUSED_CLASSES` classes that are confused most often, beside the whole matrix without names.

    Args:
        matrix (`np.ndarray` of shape `(classes, classes)`):
            Counts, one row per true class.
        names (`Sequence[str]` of length `classes`):
            The class names.
    """
    counts = np.asarray(matrix)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    names = [legible(" ".join(shortened(name).splitlines())) for name in names]
    is_part, confused = len(names) > NAMED_CLASSES, most_confused(counts, CONFUSED_CLASSES)
    shown = confused or [*range(CONFUSED_CLASSES)] if is_part else [*range(len(names))]
    labels = [names[label] for label in shown]
    cell = max(CELL_SIDE, text_width(f" {counts.max()} ", CAPTION_SIZE))
    side = max(MIN_SIDE, cell * len(shown))
    margin = LABEL_HEIGHT + max(text_width(label, CAPTION_SIZE) for label in labels)
    middle = margin + side + BAR_WIDTH
    figure = Figure(figsize=(middle + is_part * (OVERVIEW_SIDE + LABEL_HEIGHT), margin + side + LABEL_HEIGHT))
    axes = add_axes(figure, margin, LABEL_HEIGHT, side, side)
    mappable = draw_confusions(axes, counts[np.ix_(shown, shown)], shares[np.ix_(shown, shown)], labels)
    bar = add_axes(figure, margin + side + 0.2, LABEL_HEIGHT, 0.15, MIN_SIDE)
    figure.colorbar(mappable, cax=bar, label="share of the true class", format=PercentFormatter(1))
    if is_part:
        what = "those confused most often" if confused else "there are no mistakes"
        axes.set_title(f"{len(shown)} of the classes: {what}", fontsize=HEADING_SIZE, weight="bold")
        whole = add_axes(figure, middle, LABEL_HEIGHT, OVERVIEW_SIDE, OVERVIEW_SIDE)
        whole.imshow(shares, **CONFUSION_COLORS)
        whole.set(xlabel="predicted", ylabel="true", xticks=[], yticks=[])
        whole.set_title(f"all {len(names)} classes, in the same order", fontsize=HEADING_SIZE, weight="bold")
    return use_fonts(figure)


def most_confused(counts: np.ndarray, count: int) -> list[int]:
    """In ascending order, at most `count` classes from the pairs of classes that are confused most often."""
    mistakes = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:np.count_nonzero(mistakes)]
    pairs = np.stack(np.unravel_index(order, counts.shape), axis=1)
    return sorted([*dict.fromkeys(pairs.ravel().tolist())][:count])


def draw_confusions(axes: Axes, counts: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> AxesImage:
    """Draws a confusion matrix with the names of the classes and the counts."""
    number = len(names)
    image = axes.imshow(shares, **CONFUSION_COLORS)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(number), names, rotation=90, parse_math=False, fontsize=CAPTION_SIZE)
    axes.set_yticks(range(number), names, parse_math=False, fontsize=CAPTION_SIZE)
    axes.tick_params(length=2)
    axes.set_xticks(np.arange(1, number) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, number) - 0.5, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color="0.9", linewidth=0.4)
    for row, column in zip(*counts.nonzero()):
        color = "white" if shares[row, column] > 0.4 else "black"
        axes.text(column, row, counts[row, column], ha="center", va="center", color=color, fontsize=CAPTION_SIZE)
    return image


__all__ = ["confusion_figure"]
