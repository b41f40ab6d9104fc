"""Compares torch and onnxruntime on the same images, in batches of different sizes."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from .graph import OnnxGraph


BATCH_SIZES = (1, 2, 5)
# The outputs of each batch, in the order of the graph.
Batches = list[tuple[np.ndarray, ...]]


def prepare(
    processor: BaseImageProcessor, images: Sequence[Image.Image] | None, size: tuple[int, int]
) -> tuple[Tensor, int]:
    """Pixel values (N, 3, height, width) of the images, or of noise; repeated if fewer than all batch sizes need."""
    if images is None:
        noise = np.random.default_rng(0).integers(0, 256, (sum(BATCH_SIZES), *size, 3), dtype=np.uint8)
        images = [Image.fromarray(pixels) for pixels in noise]
    if not images:
        raise ValueError("There are no images to compare torch and onnxruntime on.")
    # One at a time, because photographs differ in size.
    values = [processor(image, return_tensors="pt")["pixel_values"][0] for image in images]
    values = list(itertools.islice(itertools.cycle(values), max(len(values), sum(BATCH_SIZES))))
    return torch.stack(values).float(), len(images)


@torch.no_grad()
def run_batches(graph: OnnxGraph, pixel_values: Tensor, files: Sequence[Path]) -> tuple[Batches, list[Batches]]:
    """The outputs of torch, from the processor's pixel values, and of each file, in batches of 1, 2, 5, 1, ..."""
    from onnxruntime import InferenceSession

    sessions = [InferenceSession(file, providers=["CPUExecutionProvider"]) for file in files]
    expected, found, start, sizes = [], [[] for _ in files], 0, itertools.cycle(BATCH_SIZES)
    while start < len(pixel_values):
        batch = pixel_values[start:start + next(sizes)].to(graph.model.device)
        start += len(batch)
        expected.append(tuple(output.cpu().numpy() for output in graph.read(batch)))
        given = {graph.input_name: graph.pixels(batch).cpu().numpy()}
        for outputs, session in zip(found, sessions):
            outputs.append(tuple(session.run(graph.outputs, given)))
    return expected, found


def check_parity(
    expected: Batches, found: Batches, outputs: Sequence[str], tolerance: float
) -> dict[int, dict[str, float]]:
    """The largest absolute difference of each output, by batch size.

    Raises:
        ValueError: If one is above `tolerance` times the largest value of the output, at least 1.
    """
    differences = {size: dict.fromkeys(outputs, 0.0) for size in BATCH_SIZES}
    for of_torch, of_onnx in zip(expected, found, strict=True):
        for name, right, value in zip(outputs, of_torch, of_onnx, strict=True):
            difference = float(np.abs(right - value).max())
            # Not `>`, because that is false for NaN.
            if not difference <= tolerance * max(1.0, float(np.abs(right).max())):
                raise ValueError(
                    f"onnxruntime and torch differ: {name} of a batch of {len(right)} by {difference:.2g}, which is "
                    f"above the tolerance of {tolerance:g}. Nothing was written."
                )
            by_name = differences.setdefault(len(right), dict.fromkeys(outputs, 0.0))
            by_name[name] = max(by_name[name], difference)
    return differences


def agreement(expected: Batches, found: Batches, outputs: Sequence[str]) -> dict[str, dict[str, float]]:
    """Compares an int8 graph with torch: for each output the largest difference, the mean cosine similarity (`cosine`)
    and the fraction of images with the same largest entry (`same`), which is the class of a classifier."""
    near = {}
    for number, name in enumerate(outputs):
        right, value = (np.concatenate([batch[number] for batch in batches]) for batches in (expected, found))
        lengths = np.linalg.norm(right, axis=1) * np.linalg.norm(value, axis=1)
        near[name] = {
            "largest_difference": float(np.abs(right - value).max()),
            "cosine": float(((right * value).sum(axis=1) / lengths).mean()),
            "same": float((right.argmax(axis=1) == value.argmax(axis=1)).mean()),
        }
    return near


__all__ = ["agreement", "check_parity", "prepare", "run_batches"]
