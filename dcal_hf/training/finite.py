"""Finds the first step whose loss or gradients were not finite, its images, and weights that are not finite."""

import torch
from datasets import Dataset
from torch import Tensor, nn

from ..data.columns import image_records
from ..models.loading_dcal import find_non_finite


_NEVER = torch.iinfo(torch.int64).max


class FiniteWatch:
    """Records the first step at which a value was not finite, without synchronizing with the device.

    Args:
        device (`torch.device`): The device of the values.
    """

    def __init__(self, device: torch.device):
        self._first = torch.full((), _NEVER, dtype=torch.int64, device=device)

    def update(self, step: int, number: Tensor) -> None:
        """Checks a scalar of a step, asynchronously on the device."""
        self._first = torch.where(number.detach().isfinite(), self._first, self._first.clamp(max=step))

    def first(self) -> Tensor:
        """That step as an int64 scalar, or a value above any step; [`as_step`] converts it."""
        return self._first


def as_step(first: Tensor) -> int | None:
    """The first step recorded by the watches of one or more processes, if any; synchronizes with the device."""
    step = int(first.min())
    return None if step == _NEVER else step


def check_weights(model: nn.Module, step: int) -> None:
    """
    Raises:
        FloatingPointError: If a tensor of the model is not finite; the message names it and the step.
    """
    broken = find_non_finite(model)
    if broken is not None:
        raise FloatingPointError(
            f"The weights after step {step} have NaN or infinity in {broken}: lower the learning rate and resume from "
            "the last checkpoint."
        )


def paths_or_rows(dataset: Dataset, rows: list[int]) -> list[str]:
    """The paths of images, or their row numbers where they have no path. No image is decoded."""
    names = [f"row {row}" for row in rows]
    if "image" not in getattr(dataset, "column_names", ()):
        return names
    return [record["path"] or name for record, name in zip(image_records(dataset.select(rows)), names)]


__all__ = ["FiniteWatch", "as_step", "check_weights", "paths_or_rows"]
