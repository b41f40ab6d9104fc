"""A model's inputs: their checks, and the images that PWCA pairs."""

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


def check_computes_weights(implementation: str) -> None:
    """
    Raises:
        ValueError: If an attention implementation does not compute the weights that `output_attentions` asks for.
    """
    if implementation != "eager":
        raise ValueError(
            f"output_attentions needs the attention weights, which '{implementation}' does not compute: call "
            "set_attn_implementation('eager') first."
        )


def paired_images(pairs: Tensor | None, pair_noise: bool, hidden_states: Tensor) -> Tensor | None:
    """Indices (2P,) of the images in the PWCA branch, partners adjacent; with noise and no `pairs`, all images."""
    if pairs is None:
        return torch.arange(len(hidden_states), device=hidden_states.device) if pair_noise else None
    # Asynchronous, so that the CPU does not wait for the device.
    return pairs.flatten().to(hidden_states.device, non_blocking=True) if len(pairs) > 0 else None


__all__ = ["check_computes_weights", "check_images", "check_pairs", "paired_images"]
