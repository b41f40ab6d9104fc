"""Which step was the first whose loss or gradients were not finite, and which images it had."""

import torch
from datasets import Dataset, Image
from torch import Tensor


_NEVER = torch.iinfo(torch.int64).max


class FiniteWatch:
    """Remembers the first step at which a number was not finite, without waiting for the device.

    Args:
        device (`torch.device`): Where the numbers are.
    """

    def __init__(self, device: torch.device):
        self._first = torch.full((), _NEVER, dtype=torch.int64, device=device)

    def see(self, step: int, number: Tensor) -> None:
        """Looks at a number (a scalar) of a step; the device does so when it comes to it."""
        self._first = torch.where(number.detach().isfinite(), self._first, self._first.clamp(max=step))

    def first(self) -> Tensor:
        """That step, int64, or a larger number than any step's; to be read by [`as_step`]."""
        return self._first


def as_step(first: Tensor) -> int | None:
    """The first of the steps that the watches of one or more processes give, if there is any; waits for the device."""
    step = int(first.min())
    return None if step == _NEVER else step


def image_labels(dataset: Dataset, rows: list[int]) -> list[str]:
    """What people find some images by: the paths, or the rows where there are none. No image is opened."""
    names = [f"row {row}" for row in rows]
    if "image" not in getattr(dataset, "column_names", ()):
        return names
    records = dataset.with_format(None).select(rows).cast_column("image", Image(decode=False))["image"]
    return [record["path"] or name for record, name in zip(records, names)]


__all__ = ["FiniteWatch", "as_step", "image_labels"]
