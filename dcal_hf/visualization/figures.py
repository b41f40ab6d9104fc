"""Figures of single results: attention on some photographs, and the ranked list of a query."""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers import BaseImageProcessor

from ..files import write_atomically
from .layout import DOTS_PER_INCH, Picture, picture_figure
from .overlays import dimmed, model_view, pasted, rollout_overlay, selection_overlay, upright


QUERY_COLOR = "black"
# In points.
ROW_CAPTION_SIZE, MATCH_CAPTION_SIZE = 10, 9
# In inches, of a column.
ATTENTION_WIDTH, MATCH_WIDTH = 3, 1.4
# Matches in a line. More would make the figure so wide that its texts cannot be read on a page.
MATCH_COLUMNS = 5
MAX_DIGITS = 7
# Letters and frames look as in a PNG.
JPEG_QUALITY = 85


def attention_figure(
    images: Sequence[Image.Image],
    rollouts: np.ndarray | torch.Tensor,
    grid: tuple[int, int],
    selected: np.ndarray | torch.Tensor | None,
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
        selected (`np.ndarray` or `torch.Tensor` of shape `(B, R)`, *optional*):
            Indices of the selected patches; a model whose GLCA reads the class token has none.
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
    is_selected, selected = selected is not None, [None] * len(images) if selected is None else selected
    lengths = {len(images), len(rollouts), len(selected), len(titles), len(correct)}
    if len(lengths) > 1 or not images:
        raise ValueError(
            "An attention figure needs one rollout, selection, title and mark for each of at least one image, got "
            f"{len(images)} images, {len(rollouts)} rollouts, {len(selected)} selections, {len(titles)} titles and "
            f"{len(correct)} marks."
        )
    images = [image.convert("RGB") if processor is None else upright(image) for image in images]
    rows = []
    for image, rollout, patches, title, mark in zip(images, rollouts, selected, titles, correct):
        view = (0, 0, *image.size) if processor is None else model_view(image.size, processor)
        heat = pasted(image, rollout_overlay(image.crop(view), rollout, grid), view)
        rows.append([Picture(image, mark), Picture(heat, caption=title)])
        if is_selected:
            rows[-1].append(Picture(pasted(dimmed(image), selection_overlay(image.crop(view), grid, patches), view)))
    headings = ["image", "attention rollout", "selected patches"][:len(rows[0])]
    return picture_figure(rows, ATTENTION_WIDTH, ROW_CAPTION_SIZE, headings, len(rows[0]) * ATTENTION_WIDTH)


def ranked_list(
    query_image: Image.Image | Sequence[Image.Image],
    gallery_images: Sequence[Image.Image] | Sequence[Sequence[Image.Image]],
    scores: Sequence[float] | Sequence[Sequence[float]] | np.ndarray,
    correct: Sequence[bool | None] | Sequence[Sequence[bool | None]] | None = None,
    titles: Sequence[str] | Sequence[Sequence[str]] | None = None,
    query_title: str | Sequence[str] | None = None,
    score_name: str = "",
) -> Figure:
    """Draws a query and its best matches in a row, or one row per query. After five matches, a row continues below.

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
        score_name (`str`, *optional*):
            Written before each score, such as `"distance"`.

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
    pictures = []
    for query, name, written, *matches in zip(query_image, query_titles, told_apart(scores), *rows):
        headings = [" ".join(filter(None, [f"{rank}:", score_name, score])) for rank, score in enumerate(written, 1)]
        found = [
            Picture(image, mark, title, heading) for image, _, mark, title, heading in zip(*matches, headings)
        ]
        lead = Picture(query, caption=name, heading="query", frame=QUERY_COLOR)
        starts = range(0, max(1, len(found)), MATCH_COLUMNS)
        pictures += [[None if start else lead, *found[start:start + MATCH_COLUMNS]] for start in starts]
    return picture_figure(pictures, MATCH_WIDTH, MATCH_CAPTION_SIZE)


def told_apart(rows: Sequence[Sequence[float]]) -> list[list[str]]:
    """Scores with three decimals, or with as many more as tell different ones of a row apart."""
    for digits in range(3, MAX_DIGITS + 1):
        written = [[f"{score:.{digits}f}" for score in row] for row in rows]
        if all(len({*texts}) == len({float(score) for score in row}) for texts, row in zip(written, rows)):
            break
    return written


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure in the format given by the suffix of `path`. The file appears only once it is complete.

    Args:
        figure (`matplotlib.figure.Figure`):
            The figure.
        path (`str` or `os.PathLike`):
            The file to write, such as `attention.png` or `attention.pdf`. A figure of many photographs is much smaller
            as `.jpg`.

    Raises:
        ValueError: If matplotlib cannot write the format.
    """
    content, suffix = BytesIO(), Path(path).suffix[1:]
    options = {"pil_kwargs": {"quality": JPEG_QUALITY}} if suffix in ("jpg", "jpeg") else {}
    figure.savefig(content, format=suffix, dpi=DOTS_PER_INCH, **options)
    write_atomically(path, content.getvalue())


__all__ = ["attention_figure", "ranked_list", "save_figure"]
