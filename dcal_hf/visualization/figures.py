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
from .overlays import dimmed, model_view, pasted, rollout_overlay, selection_overlay


FRAME_COLORS = {True: "tab:green", False: "tab:red", None: "none"}


def attention_figure(
    images: Sequence[Image.Image],
    rollouts: np.ndarray | torch.Tensor,
    grid: tuple[int, int],
    selected: np.ndarray | torch.Tensor,
    titles: Sequence[str] | None = None,
    processor: BaseImageProcessor | None = None,
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
            The title of each row, such as `"true: wren  predicted: robin (0.93)"`.
        processor (`BaseImageProcessor`, *optional*):
            The image processor of the model; if not given, the patch grid covers each image entirely.

    Returns:
        `matplotlib.figure.Figure`: the figure; [`save_figure`] writes it.

    Raises:
        ValueError: If there is no image, the arguments differ in length, or a rollout or selection does not match the
            grid.
    """
    titles = [""] * len(images) if titles is None else titles
    lengths = {len(images), len(rollouts), len(selected), len(titles)}
    if len(lengths) > 1 or not images:
        raise ValueError(
            "An attention figure needs one rollout, one selection and one title for each of at least one image, got "
            f"{len(images)} images, {len(rollouts)} rollouts, {len(selected)} selections and {len(titles)} titles."
        )
    images = [image.convert("RGB") if processor is None else open_image(image) for image in images]
    heights = [image.height / image.width for image in images]
    figure = Figure(figsize=(9, 3 * sum(heights) + 0.4 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 3, squeeze=False, height_ratios=heights)
    for row, image, rollout, patches, title in zip(axes, images, rollouts, selected, titles, strict=True):
        view = (0, 0, *image.size) if processor is None else model_view(image.size, processor)
        heat = pasted(image, rollout_overlay(image.crop(view), rollout, grid), view)
        bright = pasted(dimmed(image), selection_overlay(image.crop(view), grid, patches), view)
        for cell, picture in zip(row, (image, heat, bright), strict=True):
            cell.imshow(picture)
            cell.set(xticks=[], yticks=[])
        row[1].set_title(title, parse_math=False)
    for cell, name in zip(axes[-1], ("image", "rollout", "selected patches"), strict=True):
        cell.set_xlabel(name)
    return figure


def ranked_list(
    query_image: Image.Image | Sequence[Image.Image],
    gallery_images: Sequence[Image.Image] | Sequence[Sequence[Image.Image]],
    scores: Sequence[float] | Sequence[Sequence[float]] | np.ndarray,
    correct: Sequence[bool | None] | Sequence[Sequence[bool | None]] | None = None,
    titles: Sequence[str] | Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Draws a query and its best matches in a row, or one row per query.

    Args:
        query_image (`PIL.Image.Image`, or a sequence of `Q`):
            One query or several; with several, each of the other arguments is a sequence with one entry per query.
        gallery_images (`Sequence[PIL.Image.Image]` of length `k`):
            Its matches, best first; their number may differ between queries.
        scores (`Sequence[float]` of length `k`):
            Written above each match.
        correct (`Sequence[bool | None]` of length `k`, *optional*):
            Matches with True get a green frame, with False a red one, with None none.
        titles (`Sequence[str]` of length `k`, *optional*):
            Written below each match, such as its name.

    Returns:
        `matplotlib.figure.Figure`: the figure; [`save_figure`] writes it.

    Raises:
        ValueError: If the numbers of queries, matches, scores, marks and titles do not agree.
    """
    rows = [gallery_images, scores, correct, titles]
    if isinstance(query_image, Image.Image):
        query_image, rows = [query_image], [None if part is None else [part] for part in rows]
    gallery_images, scores, correct, titles = rows
    if correct is None:
        correct = [[None] * len(row) for row in gallery_images]
    if titles is None:
        titles = [[""] * len(row) for row in gallery_images]
    rows = [gallery_images, scores, correct, titles]
    if any([*map(len, row)] != [*map(len, gallery_images)] for row in rows) or len(query_image) != len(gallery_images):
        raise ValueError(
            "A ranked list needs one row of matches for each query, and one score, mark and title for each match, got "
            f"{len(query_image)} queries and rows of {[[*map(len, row)] for row in rows]}."
        )
    columns = 1 + max(map(len, gallery_images))
    figure = Figure(figsize=(1.6 * columns, 2.1 * len(query_image)), layout="constrained")
    axes = figure.subplots(len(query_image), columns, squeeze=False)
    for cell in axes.flat:
        cell.axis("off")
    for cells, query, *matches in zip(axes, query_image, *rows, strict=True):
        draw_picture(cells[0], query, "query", None, "")
        for cell, image, score, mark, title in zip(cells[1:], *matches):
            draw_picture(cell, image, f"{score:.3f}", mark, title)
    return figure


def draw_picture(cell: Axes, image: Image.Image, heading: str, mark: bool | None, title: str) -> None:
    """Draws an image with a heading, a line below it, and a green (True), a red (False) or no frame (None)."""
    cell.axis("on")
    cell.imshow(image.convert("RGB"))
    cell.set(xticks=[], yticks=[])
    cell.set_title(heading, fontsize="small")
    cell.set_xlabel(title, fontsize="x-small", parse_math=False)
    cell.spines[:].set(edgecolor=FRAME_COLORS[mark], linewidth=4)


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
    figure.savefig(content, format=Path(path).suffix[1:])
    write_atomically(path, content.getvalue())


__all__ = ["attention_figure", "draw_picture", "ranked_list", "save_figure"]
