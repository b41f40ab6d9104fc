"""Checks of a model's inputs."""

from collections import Counter

import torch
from torch import Tensor


def check_images(pixel_values: Tensor, image_size: tuple[int, int]) -> None:
    """
    Raises:
        TypeError: If `pixel_values` is not a tensor.
        ValueError: If it is not a batch of images of `image_size`, (height, width).
    """
    if not isinstance(pixel_values, Tensor):
        raise TypeError(
            "pixel_values must be a tensor of shape (B, channels, height, width), as the image processor returns with "
            f"return_tensors='pt', got {type(pixel_values).__name__}."
        )
    if pixel_values.dim() != 4:
        raise ValueError(
            "pixel_values must have the shape (B, channels, height, width), also for a single image, got "
            f"{tuple(pixel_values.shape)}."
        )
    if tuple(pixel_values.shape[-2:]) != image_size:
        raise ValueError(
            f"pixel_values have {tuple(pixel_values.shape[-2:])} pixels, but the model takes {image_size}: resize "
            "them, or build the model with their image_size."
        )


def check_pairs(pairs: Tensor, batch_size: int) -> None:
    """
    Raises:
        TypeError: If `pairs` is not a tensor.
        ValueError: If `pairs` is not an int64 tensor of shape `(P, 2)`. On the CPU, where reading values needs no
            synchronisation, also if an index is out of range or repeated other than as `[i, i]`.
    """
    if not isinstance(pairs, Tensor):
        raise TypeError(f"pairs must be a tensor of shape (P, 2), int64, got {type(pairs).__name__}.")
    if pairs.dtype != torch.int64 or pairs.dim() != 2 or pairs.size(1) != 2:
        raise ValueError(
            f"pairs must be int64 of shape (P, 2), one row for each two images that distract each other, got "
            f"{pairs.dtype} of shape {tuple(pairs.shape)}."
        )
    if pairs.device.type != "cpu" or torch.compiler.is_compiling():
        return
    named = [image for first, second in pairs.tolist() for image in {first, second}]
    for image, count in Counter(named).items():
        if not 0 <= image < batch_size:
            raise ValueError(f"pairs contains image {image}, but the batch has images 0 to {batch_size - 1}.")
        if count > 1:
            raise ValueError(
                f"pairs contains image {image} in {count} rows: an image can have only one partner (itself in a row "
                f"[{image}, {image}])."
            )


__all__ = ["check_images", "check_pairs"]
