"""Figures of single results: attention on some photographs, and the ranked list of a query."""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from transformers import BaseImageProcessor

from ..data.images import open_image
from ..files import write_atomically
from .lettering import use_fonts, wrapped
from .overlays import dimmed, model_view, pasted, rollout_overlay, selection_overlay


# Also told apart by people who do not see red or green: bluish green and vermilion of Okabe and Ito's palette.
MARK_COLORS = {True: "#009e73", False: "#d55e00"}
# Besides the colour, a sign.
MARKS = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}"}
QUERY_COLOR = "black"
FRAME_WIDTH = 4
# In points.
CAPTION_SIZE, HEADING_SIZE, ROW_CAPTION_SIZE = 7, 8, 10
# In inches: the cells, and a line of text of one point.
ATTENTION_WIDTH, MATCH_WIDTH = 3, 1.6
LINE_HEIGHT = 1.4 / 72
# Of a picture: in a flatter one there is no room for its mark.
MIN_RATIO = 0.4
MAX_DIGITS = 7
DOTS_PER_INCH = 150


def attention_figure(
    images: Sequence[Image.Image],
    rollouts: np.ndarray | torch.Tensor,
    grid: tuple[int, int],
    selected: np.ndarray | torch.Tensor,
    titles: Sequence[str] | None = None,
    processor: BaseImageProcessor | None = None,
    correct: Sequence[bool | None] | None = None,
) -> Figure:
    """Draws one row per image: the image, its rollout as a heat map, and its selected patches.

    Args:
        images (`Sequence[PIL.Image.Image]` of length `B`):
            The images, of any sizes: the model's inputs or, with a `processor`, the original photographs.
        rollouts (`np.ndarray` or `torch.Tensor` of shape `(B, N)`):
            Attention rollout from the class token to each patch.
        grid (`tuple[int, int]`):
            Rows and columns of patches, `rows * columns == N`.
        selected (`np.ndarray` or `torch.Tensor` of shape `(B, R)`):
            Indices of the selected patches.
        titles (`Sequence[str]` of length `B`, *optional*):
            Written below each row, such as `"wren.jpg   true: wren   predicted: robin (0.93)"`.
        processor (`BaseImageProcessor`, *optional*):
            The image processor of the model; if not given, the patch grid covers each image entirely.
        correct (`Sequence[bool | None]` of length `B`, *optional*):
            Images with True get a green frame with a tick, with False a red one with a cross, with None none.

    Returns:
        `matplotlib.figure.Figure`: the figure; [`save_figure`] writes it.

    Raises:
        ValueError: If there is no image, the arguments differ in length, or a rollout or selection does not match the
            grid.
    """
    titles = [""] * len(images) if titles is None else titles
    correct = [None] * len(images) if correct is None else correct
    lengths = {len(images), len(rollouts), len(selected), len(titles), len(correct)}
    if len(lengths) > 1 or not images:
        raise ValueError(
            "An attention figure needs one rollout, selection, title and mark for each of at least one image, got "
            f"{len(images)} images, {len(rollouts)} rollouts, {len(selected)} selections, {len(titles)} titles and "
            f"{len(correct)} marks."
        )
    images = [image.convert("RGB") if processor is None else open_image(image) for image in images]
    titles = [wrapped(title, 3 * ATTENTION_WIDTH, ROW_CAPTION_SIZE) for title in titles]
    figure, axes = picture_grid(
        [[image] for image in images], 3, ATTENTION_WIDTH, [[title] for title in titles], ROW_CAPTION_SIZE
    )
    for row, image, rollout, patches, title, mark in zip(axes, images, rollouts, selected, titles, correct):
        view = (0, 0, *image.size) if processor is None else model_view(image.size, processor)
        heat = pasted(image, rollout_overlay(image.crop(view), rollout, grid), view)
        bright = pasted(dimmed(image), selection_overlay(image.crop(view), grid, patches), view)
        for cell, picture, sign in zip(row, (image, heat, bright), (mark, None, None), strict=True):
            draw_picture(cell, picture, sign)
        # The layout makes no room for the width of a label, so it may be as wide as the row.
        row[1].set_xlabel(title, fontsize=ROW_CAPTION_SIZE, parse_math=False)
    for cell, name in zip(axes[0], ("image", "rollout", "selected patches"), strict=True):
        cell.set_title(name, weight="bold")
    return use_fonts(figure)


def ranked_list(
    query_image: Image.Image | Sequence[Image.Image],
    gallery_images: Sequence[Image.Image] | Sequence[Sequence[Image.Image]],
    scores: Sequence[float] | Sequence[Sequence[float]] | np.ndarray,
    correct: Sequence[bool | None] | Sequence[Sequence[bool | None]] | None = None,
    titles: Sequence[str] | Sequence[Sequence[str]] | None = None,
    query_title: str | Sequence[str] | None = None,
) -> Figure:
    """Draws a query and its best matches in a row, or one row per query.

    Args:
        query_image (`PIL.Image.Image`, or a sequence of `Q`):
            One query or several; with several, each of the other arguments is a sequence with one entry per query.
        gallery_images (`Sequence[PIL.Image.Image]` of length `k`):
            Its matches, best first; their number may differ between queries.
        scores (`Sequence[float]` of length `k`):
            Written above each match behind its rank, with as many digits as tell neighbours apart.
        correct (`Sequence[bool | None]` of length `k`, *optional*):
            Matches with True get a green frame with a tick, with False a red one with a cross, with None none.
        titles (`Sequence[str]` of length `k`, *optional*):
            Written below each match, such as its name.
        query_title (`str`, *optional*):
            Written below the query, such as its name.

    Returns:
        `matplotlib.figure.Figure`: the figure; [`save_figure`] writes it.

    Raises:
        ValueError: If the numbers of queries, matches, scores, marks and titles do not agree.
    """
    parts = [gallery_images, scores, correct, titles, query_title]
    if isinstance(query_image, Image.Image):
        query_image, parts = [query_image], [None if part is None else [part] for part in parts]
    gallery_images, scores, correct, titles, query_titles = parts
    if correct is None:
        correct = [[None] * len(row) for row in gallery_images]
    if titles is None:
        titles = [[""] * len(row) for row in gallery_images]
    query_titles = [""] * len(query_image) if query_titles is None else query_titles
    rows = [gallery_images, scores, correct, titles]
    lengths = {len(query_image), len(gallery_images), len(query_titles)}
    if any([*map(len, row)] != [*map(len, gallery_images)] for row in rows) or len(lengths) > 1:
        raise ValueError(
            "A ranked list needs one title and one row of matches for each query, and one score, mark and title for "
            f"each match, got {len(query_image)} queries, {len(query_titles)} titles of them and rows of "
            f"{[[*map(len, row)] for row in rows]}."
        )
    pictures = [[query, *matches] for query, matches in zip(query_image, gallery_images)]
    captions = [
        [wrapped(title, MATCH_WIDTH, CAPTION_SIZE) for title in row]
        for row in ([query_title, *row] for query_title, row in zip(query_titles, titles))
    ]
    figure, axes = picture_grid(pictures, max(map(len, pictures)), MATCH_WIDTH, captions, CAPTION_SIZE)
    for cells, row, names, values, marks in zip(axes, pictures, captions, scores, correct, strict=True):
        headings = ["query", *(f"{rank}: {value}" for rank, value in enumerate(told_apart(values), start=1))]
        for cell, image, mark, name, heading in zip(cells, row, [None, *marks], names, headings):
            draw_picture(cell, image, mark, name, heading)
        cells[0].spines[:].set(edgecolor=QUERY_COLOR)
        cells[0].title.set_weight("bold")
    return use_fonts(figure)


def told_apart(scores: Sequence[float]) -> list[str]:
    """Scores with three decimals, or with as many more as tell different ones apart."""
    for digits in range(3, MAX_DIGITS):
        written = [f"{score:.{digits}f}" for score in scores]
        if len(set(written)) == len({float(score) for score in scores}):
            return written
    return [f"{score:.{MAX_DIGITS}f}" for score in scores]


def picture_grid(
    rows: Sequence[Sequence[Image.Image]],
    columns: int,
    width: float,
    captions: Sequence[Sequence[str]],
    font_size: float,
) -> tuple[Figure, np.ndarray]:
    """Lays out rows of pictures, each row as high as its tallest picture.

    Args:
        rows (`Sequence` of `Sequence[PIL.Image.Image]`): The pictures that a row has to hold.
        columns (`int`): Cells per row.
        width (`float`): Width of a cell in inches.
        captions (`Sequence` of `Sequence[str]`): Their captions, whose lines need room.
        font_size (`float`): Of the captions, in points.

    Returns:
        The figure and its cells, of shape `(rows, columns)`, not yet visible.
    """
    heights = [width * max(MIN_RATIO, *(image.height / image.width for image in row)) for row in rows]
    lines = sum(2 + max(caption.count("\n") for caption in row) for row in captions)
    figure = Figure(
        figsize=(width * columns, sum(heights) + LINE_HEIGHT * font_size * lines + 0.4), layout="constrained"
    )
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for cell in axes.flat:
        cell.axis("off")
    return figure, axes


def draw_picture(cell: Axes, image: Image.Image, mark: bool | None, caption: str = "", heading: str = "") -> None:
    """Draws an image in a frame, green with a tick (True), red with a cross (False) or none (None)."""
    cell.axis("on")
    cell.imshow(image.convert("RGB"))
    cell.set(xticks=[], yticks=[], anchor="N")
    cell.set_title(heading, fontsize=HEADING_SIZE)
    cell.set_xlabel(caption, fontsize=CAPTION_SIZE, parse_math=False)
    cell.spines[:].set(edgecolor="none" if mark is None else MARK_COLORS[mark], linewidth=FRAME_WIDTH)
    if mark is not None:
        box = {"boxstyle": "square,pad=0.2", "facecolor": MARK_COLORS[mark], "edgecolor": "none"}
        cell.annotate(
            MARKS[mark], (0, 1), (2, -2), "axes fraction", "offset points", color="white", weight="bold", bbox=box,
            ha="left", va="top", fontsize=ROW_CAPTION_SIZE
        )


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure in the format given by the suffix of `path`. The file appears only once it is complete.

    Args:
        figure (`matplotlib.figure.Figure`):
            The figure.
        path (`str` or `os.PathLike`):
            The file to write, such as `attention.png` or `attention.pdf`.

    Raises:
        ValueError: If matplotlib cannot write the format.
    """
    content = BytesIO()
    figure.savefig(content, format=Path(path).suffix[1:], dpi=DOTS_PER_INCH)
    write_atomically(path, content.getvalue())


__all__ = ["attention_figure", "draw_picture", "picture_grid", "ranked_list", "save_figure"]
