"""Image sizes, patch grids and position embeddings."""

from numbers import Integral

import torch
from torch import Tensor, nn


def as_pair(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """`448` -> `(448, 448)`; `[256, 128]` -> `(256, 128)`, in (height, width) order.

    Raises:
        ValueError: For anything but one or two integers.
    """
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(number, Integral) for number in pair):
        raise ValueError(f"A size in pixels must be one integer, or two (height, width), got {size!r}.")
    return int(pair[0]), int(pair[1])


def patch_grid(
    image_size: int | list[int] | tuple[int, ...], patch_size: int | list[int] | tuple[int, ...]
) -> tuple[int, int]:
    """The rows and columns of patches of an image; sizes are in pixels, see [`as_pair`]."""
    (height, width), (patch_height, patch_width) = as_pair(image_size), as_pair(patch_size)
    return height // patch_height, width // patch_width


@torch.no_grad()
def resize_positions(
    positions: Tensor, source: tuple[int, int], target: tuple[int, int], antialias: bool = False
) -> Tensor:
    """Resizes position embeddings to another patch grid with bicubic interpolation; prefix tokens keep theirs.

    Computes the same as transformers' `interpolate_pos_encoding=True`, but once instead of at every step.

    Args:
        positions (`Tensor` of shape `(..., prefix + source rows * columns, D)`)
        source, target (`(rows, columns)`)

    Returns:
        `Tensor` of shape `(..., prefix + target rows * columns, D)`.
    """
    if source == target:
        return positions
    table = positions.reshape(-1, positions.size(-1))
    prefix, patches = table[:-source[0] * source[1]], table[-source[0] * source[1]:]
    patches = patches.T.reshape(1, -1, *source).float()
    patches = nn.functional.interpolate(
        patches, size=target, mode="bicubic", align_corners=False, antialias=antialias
    )
    resized = torch.cat([prefix, patches.flatten(2)[0].T.to(table.dtype)])
    return resized.reshape(*positions.shape[:-2], *resized.shape)


__all__ = ["as_pair", "patch_grid", "resize_positions"]
