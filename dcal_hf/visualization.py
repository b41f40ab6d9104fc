"""Pictures of where the model looks (attention rollouts, selected patches) and of what it finds (ranked lists)."""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor

from .data.images import open_image
from .files import write_atomically


try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("dcal_hf.visualization needs matplotlib: pip install dcal_hf[pictures]") from error


HEAT_COLORS = "inferno"
HEAT_WEIGHT = 0.6
BOX_COLOR = (0, 255, 255)
DIMMED_BRIGHTNESS = 0.25
FRAME_COLORS = {True: "tab:green", False: "tab:red", None: "none"}


def rollout_overlay(
    image: Image.Image,
    rollout: np.ndarray | torch.Tensor,
    grid: tuple[int, int],
    selected: np.ndarray | torch.Tensor | None = None,
) -> Image.Image:
    """Lays the attention rollout over its image as a heat map, and frames the selected patches.

    The rollout is stretched to the range from 0 to 1, so brightness compares the patches of one image, not of two.
    Attention rollout: Abnar and Zuidema, https://arxiv.org/abs/2005.00928.

    Args:
        image (`PIL.Image.Image`):
            The picture, of any size; the patch grid covers the whole of it.
        rollout (`np.ndarray` or `torch.Tensor` of shape `(N,)`):
            How much the class token has drawn from each patch, row by row.
        grid (`tuple[int, int]`):
            Rows and columns of patches, `rows * columns == N`.
        selected (`np.ndarray` or `torch.Tensor` of shape `(R,)`, *optional*):
            Indices into the patches.

    Returns:
        `PIL.Image.Image`: an RGB picture of the size of `image`.

    Raises:
        ValueError: If the rollout does not have one number per patch of the grid, or `selected` names a patch outside
            it.
    """
    heat = Image.fromarray(_heat(rollout, grid)).resize(image.size, Image.Resampling.BILINEAR)
    colors = colormaps[HEAT_COLORS](np.asarray(heat), bytes=True)[..., :3]
    blended = np.asarray(Image.blend(image.convert("RGB"), Image.fromarray(colors), HEAT_WEIGHT))
    if selected is not None:
        frames = _selected_pixels(selected, grid, image.size) & _frame_pixels(grid, image.size)
        blended = np.where(frames[..., None], np.uint8(BOX_COLOR), blended)
    return Image.fromarray(blended)


def selection_overlay(image: Image.Image, grid: tuple[int, int], selected: np.ndarray | torch.Tensor) -> Image.Image:
    """Dims the patches that were not selected.

    Args:
        image (`PIL.Image.Image`):
            The picture, of any size; the patch grid covers the whole of it.
        grid (`tuple[int, int]`):
            Rows and columns of patches.
        selected (`np.ndarray` or `torch.Tensor` of shape `(R,)`):
            Indices into the patches.

    Returns:
        `PIL.Image.Image`: an RGB picture of the size of `image`.

    Raises:
        ValueError: If `selected` names a patch outside the grid.
    """
    image = image.convert("RGB")
    bright = _selected_pixels(selected, grid, image.size)[..., None]
    return Image.fromarray(np.where(bright, np.asarray(image), np.asarray(_dimmed(image))))


def _dimmed(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) * DIMMED_BRIGHTNESS).astype(np.uint8))


def photograph_overlay(
    photograph: Image.Image,
    processor: BaseImageProcessor,
    rollout: np.ndarray | torch.Tensor,
    grid: tuple[int, int],
    selected: np.ndarray | torch.Tensor | None = None,
) -> Image.Image:
    """[`rollout_overlay`] on a photograph as it was taken, over the part of it that the model got.

    Args:
        photograph (`PIL.Image.Image`):
            The photograph, of any size; it is turned as its EXIF orientation says.
        processor (`BaseImageProcessor`):
            The image processor that has made the model's input of it.
        rollout, grid, selected:
            As in [`rollout_overlay`].

    Returns:
        `PIL.Image.Image`: an RGB picture of the photograph's size; what the model did not get is as it was.

    Raises:
        ValueError: As [`rollout_overlay`], and if the photograph cannot be read.
    """
    picture = open_image(photograph)
    view = model_view(picture.size, processor)
    return _pasted(picture, rollout_overlay(picture.crop(view), rollout, grid, selected), view)


def model_view(size: tuple[int, int], processor: BaseImageProcessor) -> tuple[int, int, int, int]:
    """The part of a photograph that an image processor makes the model's input of.

    It is asked of the processor itself, whatever its steps: where does it put the columns and rows of a picture whose
    colours number them?

    Args:
        size (`(width, height)`):
            Of the photograph, in pixels.
        processor (`BaseImageProcessor`):
            Scales, crops and pads along the axes.

    Returns:
        `(left, top, right, bottom)` in pixels of the photograph; beyond its edges where the processor pads.
    """
    width, height = size
    columns = np.round(255 * (np.arange(width) + 0.5) / width).astype(np.uint8)
    rows = np.round(255 * (np.arange(height) + 0.5) / height).astype(np.uint8)
    numbers = np.stack([*np.broadcast_arrays(columns, rows[:, None]), np.full((height, width), 255, np.uint8)], axis=2)
    pictures = [Image.fromarray(numbers), Image.new("RGB", size, "black"), Image.new("RGB", size, "white")]
    processed = np.asarray(processor(pictures, return_tensors="pt")["pixel_values"], dtype=np.float64)
    # Whatever the mean and the standard deviation: 0 is black, 1 is white. What is padded is not white.
    dark, bright = (picture.max(axis=(1, 2), keepdims=True) for picture in processed[1:])
    across, down, there = (processed[0] - dark) / (bright - dark)
    inside = there > 0.99
    left, right = _line(across, inside, axis=0)
    top, bottom = _line(down, inside, axis=1)
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def _line(numbers: np.ndarray, inside: np.ndarray, axis: int) -> tuple[float, float]:
    """The straight line through pixels' numbers along the other axis: its values at both edges of the input."""
    places = np.flatnonzero(inside.any(axis=axis))
    # Towards the edges interpolation bends the line.
    places = places[len(places) // 4:len(places) - len(places) // 4]
    means = np.where(inside, numbers, 0).sum(axis=axis)[places] / inside.sum(axis=axis)[places]
    slope, start = np.polyfit(places + 0.5, means, 1)
    return start, start + slope * inside.shape[1 - axis]


def _pasted(picture: Image.Image, part: Image.Image, view: tuple[int, int, int, int]) -> Image.Image:
    picture = picture.copy()
    picture.paste(part, view[:2])
    return picture


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
            The pictures, of any sizes: what the model got or, with a `processor`, the photographs.
        rollouts (`np.ndarray` or `torch.Tensor` of shape `(B, N)`):
            How much the class token has drawn from each patch.
        grid (`tuple[int, int]`):
            Rows and columns of patches, `rows * columns == N`.
        selected (`np.ndarray` or `torch.Tensor` of shape `(B, R)`):
            Indices into the patches.
        titles (`Sequence[str]` of length `B`, *optional*):
            A line above each row, such as `"true: wren  predicted: robin (0.93)"`.
        processor (`BaseImageProcessor`, *optional*):
            What has made the model's inputs of the photographs; without, the patch grid covers each whole picture.

    Returns:
        `matplotlib.figure.Figure`: the figure; [`save_figure`] writes it.

    Raises:
        ValueError: If there is no image, the arguments differ in length, or an image's rollout or selection does not
            fit the grid.
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
        heat = _pasted(image, rollout_overlay(image.crop(view), rollout, grid), view)
        bright = _pasted(_dimmed(image), selection_overlay(image.crop(view), grid, patches), view)
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
    """Draws the best matches of a query beside it, or one row per query.

    Args:
        query_image (`PIL.Image.Image`, or a sequence of `Q`):
            The query, or several; the other arguments are then sequences of `Q` of what is said here.
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
        ValueError: If the numbers of queries, matches, scores, marks and titles do not fit each other.
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
        _draw_match(cells[0], query, "query", None, "")
        for cell, image, score, mark, title in zip(cells[1:], *matches):
            _draw_match(cell, image, f"{score:.3f}", mark, title)
    return figure


def _draw_match(cell: Axes, image: Image.Image, heading: str, mark: bool | None, title: str) -> None:
    cell.axis("on")
    cell.imshow(image.convert("RGB"))
    cell.set(xticks=[], yticks=[])
    cell.set_title(heading, fontsize="small")
    cell.set_xlabel(title, fontsize="x-small", parse_math=False)
    cell.spines[:].set(edgecolor=FRAME_COLORS[mark], linewidth=4)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure in the format that the suffix of `path` names; the file appears only once it is complete.

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


def _heat(rollout: np.ndarray | torch.Tensor, grid: tuple[int, int]) -> np.ndarray:
    """Stretches a rollout of shape `(N,)` to the range from 0 to 1, in the grid's shape; an even one becomes 0."""
    heat = torch.as_tensor(rollout).detach().float().cpu().numpy()
    count = grid[0] * grid[1]
    if heat.shape != (count,):
        raise ValueError(f"A rollout over a grid of {grid} patches needs {count} numbers, got shape {heat.shape}.")
    heat = heat.reshape(grid) - heat.min()
    return heat / max(heat.max(), np.finfo(np.float32).tiny)


def _cells(count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides `length` pixels into `count` cells: each pixel's cell, and its distance to the cell's nearer end."""
    cells = np.arange(length) * count // length
    edges = -(-np.arange(count + 1) * length // count)
    positions = np.arange(length)
    return cells, np.minimum(positions - edges[cells], edges[cells + 1] - 1 - positions)


def _selected_pixels(selected: np.ndarray | torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Marks the pixels, `(height, width)`, of the selected patches of a picture of `size` (width, height)."""
    patches = torch.as_tensor(selected).cpu().numpy()
    outside = patches[(patches < 0) | (patches >= grid[0] * grid[1])]
    if outside.size:
        raise ValueError(f"A grid of {grid} patches has no patch {outside[0]}.")
    rows, columns = _cells(grid[0], size[1])[0], _cells(grid[1], size[0])[0]
    return np.isin(rows[:, None] * grid[1] + columns, patches)


def _frame_pixels(grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Marks the pixels, `(height, width)`, on the rim of their patch; the rim is a sixteenth of a patch wide."""
    width = max(1, min(size[1] // grid[0], size[0] // grid[1]) // 16)
    from_rows, from_columns = _cells(grid[0], size[1])[1], _cells(grid[1], size[0])[1]
    return np.minimum(from_rows[:, None], from_columns) < width


__all__ = [
    "attention_figure",
    "model_view",
    "photograph_overlay",
    "ranked_list",
    "rollout_overlay",
    "save_figure",
    "selection_overlay",
]
