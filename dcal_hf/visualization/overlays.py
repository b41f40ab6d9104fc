"""Overlays of attention rollouts and selected patches on an image."""

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from transformers import BaseImageProcessor

from ..data.images import open_image
from ..metrics.distances import as_tensor


HEAT_COLORS = "inferno"
HEAT_WEIGHT = 0.6
BOX_COLOR = (0, 255, 255)
DIMMED_BRIGHTNESS = 0.25
# How often the numbers that measure a model's view pass through all places to be cut.
CUTS = 4


def rollout_overlay(
    image: Image.Image,
    rollout: np.ndarray | torch.Tensor,
    grid: tuple[int, int],
    selected: np.ndarray | torch.Tensor | None = None,
    limits: tuple[float, float] | None = None,
) -> Image.Image:
    """Overlays the attention rollout on its image as a heat map, and frames the selected patches.

    Without `limits`, the rollout is scaled to [0, 1] per image, so that brightness is comparable within an image, not
    across images.
    Attention rollout: Abnar and Zuidema, https://arxiv.org/abs/2005.00928.

    Args:
        image (`PIL.Image.Image`):
            The image, of any size; the patch grid covers it entirely.
        rollout (`np.ndarray` or `torch.Tensor` of shape `(N,)`):
            Attention rollout from the class token to each patch, row by row.
        grid (`tuple[int, int]`):
            Rows and columns of patches, `rows * columns == N`.
        selected (`np.ndarray` or `torch.Tensor` of shape `(R,)`, *optional*):
            Indices of the selected patches.
        limits (`tuple[float, float]`, *optional*):
            The values of the darkest and of the brightest colour.

    Returns:
        `PIL.Image.Image`: an RGB image of the size of `image`.

    Raises:
        ValueError: If the rollout does not have one value per patch of the grid, or `selected` has an index outside
            it.
    """
    heat = Image.fromarray(_heat(rollout, grid, limits)).resize(image.size, Image.Resampling.BILINEAR)
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
            The image, of any size; the patch grid covers it entirely.
        grid (`tuple[int, int]`):
            Rows and columns of patches.
        selected (`np.ndarray` or `torch.Tensor` of shape `(R,)`):
            Indices of the selected patches.

    Returns:
        `PIL.Image.Image`: an RGB image of the size of `image`.

    Raises:
        ValueError: If `selected` has an index outside the grid.
    """
    image = image.convert("RGB")
    bright = _selected_pixels(selected, grid, image.size)[..., None]
    return Image.fromarray(np.where(bright, np.asarray(image), np.asarray(dimmed(image))))


def dimmed(image: Image.Image) -> Image.Image:
    """An image at `DIMMED_BRIGHTNESS` of its brightness."""
    return Image.fromarray((np.asarray(image) * DIMMED_BRIGHTNESS).astype(np.uint8))


def photograph_overlay(
    photograph: Image.Image,
    processor: BaseImageProcessor,
    rollout: np.ndarray | torch.Tensor,
    grid: tuple[int, int],
    selected: np.ndarray | torch.Tensor | None = None,
    limits: tuple[float, float] | None = None,
) -> Image.Image:
    """[`rollout_overlay`] on the original photograph, over the region that the model sees.

    Args:
        photograph (`PIL.Image.Image`):
            The photograph, of any size; its EXIF orientation is applied.
        processor (`BaseImageProcessor`):
            The image processor of the model.
        rollout, grid, selected, limits:
            As in [`rollout_overlay`].

    Returns:
        `PIL.Image.Image`: an RGB image of the photograph's size; pixels that the model does not see are unchanged.

    Raises:
        ValueError: As in [`rollout_overlay`], and if the photograph cannot be read.
    """
    picture = upright(photograph)
    view = model_view(picture.size, processor)
    return pasted(picture, rollout_overlay(picture.crop(view), rollout, grid, selected, limits), view)


def upright(photograph: Image.Image) -> Image.Image:
    """A photograph as upright RGB. Whoever opened it has decided how many pixels it may have."""
    return open_image(photograph, photograph.width * photograph.height)


def model_view(size: tuple[int, int], processor: BaseImageProcessor) -> tuple[int, int, int, int]:
    """The region of a photograph that an image processor turns into the model's input.

    It is measured, so that it holds for any processing steps: the processor is applied to an image whose colours
    encode row and column.

    Args:
        size (`(width, height)`):
            Size of the photograph in pixels.
        processor (`BaseImageProcessor`):
            Resizes, crops and pads along the axes.

    Returns:
        `(left, top, right, bottom)` in pixels of the photograph; outside of it where the processor pads.
    """
    width, height = size
    columns, rows = ((np.arange(side, dtype=np.float32) + 0.5) / side for side in size)
    # An image has 256 levels. The numbers are cut at another place in each row (column), so that their mean is not.
    numbers = np.full((height, width, 3), 255, np.uint8)
    np.add(255 * columns, (CUTS * rows % 1)[:, None], out=numbers[..., 0], casting="unsafe")
    np.add(255 * rows[:, None], CUTS * columns % 1, out=numbers[..., 1], casting="unsafe")
    pictures = [Image.fromarray(numbers), Image.new("RGB", size, "black"), Image.new("RGB", size, "white")]
    processed = np.asarray(processor(pictures, return_tensors="pt")["pixel_values"], dtype=np.float64)
    # Undo the normalisation, whatever its mean and standard deviation: 0 is black, 1 is white. Padding is not white.
    dark, bright = (picture.max(axis=(1, 2), keepdims=True) for picture in processed[1:])
    across, down, there = (processed[0] - dark) / (bright - dark)
    inside = there > 0.99
    left, right = _line(across, inside, axis=0)
    top, bottom = _line(down, inside, axis=1)
    left, top, right, bottom = round(left * width), round(top * height), round(right * width), round(bottom * height)
    # Coordinates in a single row or column are all the same.
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _line(numbers: np.ndarray, inside: np.ndarray, axis: int) -> tuple[float, float]:
    """Fits a line to the encoded coordinates along the other axis; returns its values at both edges of the input."""
    places = np.flatnonzero(inside.any(axis=axis))
    # Interpolation distorts the values near the edges.
    places = places[len(places) // 4:len(places) - len(places) // 4]
    means = np.where(inside, numbers, 0).sum(axis=axis)[places] / inside.sum(axis=axis)[places]
    slope, start = np.polyfit(places + 0.5, means, 1)
    return start, start + slope * inside.shape[1 - axis]


def pasted(picture: Image.Image, part: Image.Image, view: tuple[int, int, int, int]) -> Image.Image:
    """A copy of a picture with a part pasted at the upper left corner of a view."""
    picture = picture.copy()
    picture.paste(part, view[:2])
    return picture


def _heat(
    rollout: np.ndarray | torch.Tensor, grid: tuple[int, int], limits: tuple[float, float] | None
) -> np.ndarray:
    """Scales a rollout of shape `(N,)` to [0, 1] and reshapes it to the grid; a constant one becomes 0."""
    heat = as_tensor(rollout).float().cpu().numpy()
    count = grid[0] * grid[1]
    if heat.shape != (count,):
        raise ValueError(f"A rollout over a grid of {grid} patches needs {count} numbers, got shape {heat.shape}.")
    low, high = (heat.min(), heat.max()) if limits is None else limits
    return (heat.reshape(grid) - low) / max(high - low, np.finfo(np.float32).tiny)


def _cells(count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides `length` pixels into `count` cells; returns each pixel's cell and its distance to the nearer end."""
    cells = np.arange(length) * count // length
    edges = -(-np.arange(count + 1) * length // count)
    positions = np.arange(length)
    return cells, np.minimum(positions - edges[cells], edges[cells + 1] - 1 - positions)


def _selected_pixels(selected: np.ndarray | torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Mask `(height, width)` of the pixels of the selected patches in an image of `size` (width, height)."""
    patches = as_tensor(selected).cpu().numpy()
    outside = patches[(patches < 0) | (patches >= grid[0] * grid[1])]
    if outside.size:
        raise ValueError(f"A grid of {grid} patches has no patch {outside[0]}.")
    rows, columns = _cells(grid[0], size[1])[0], _cells(grid[1], size[0])[0]
    return np.isin(rows[:, None] * grid[1] + columns, patches)


def _frame_pixels(grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Mask `(height, width)` of the pixels on the border of their patch, which is a sixteenth of a patch wide."""
    width = max(1, min(size[1] // grid[0], size[0] // grid[1]) // 16)
    from_rows, from_columns = _cells(grid[0], size[1])[1], _cells(grid[1], size[0])[1]
    return np.minimum(from_rows[:, None], from_columns) < width


__all__ = ["model_view", "photograph_overlay", "rollout_overlay", "selection_overlay"]
