"""Which two images distract each other in PWCA: by their places in the batch, which the order of the epoch arranges.

Images 2k and 2k + 1 of a batch are a pair, if the strategy lets them meet. Paper: section 3.3, and Table 4 for the
strategies (https://huggingface.co/papers/2205.02151). Nothing is drawn at a step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..models.loss_dcal import IGNORED


PAIR_SAMPLING = ("any", "inter_class", "intra_class", "half", "noise")
# Strategies that look at classes.
BY_CLASS = ("inter_class", "intra_class", "half")


def batch_pairs(labels: Tensor, strategy: str) -> Tensor:
    """Images 2k and 2k + 1 of a batch, where the strategy lets them meet.

    Args:
        labels (`Tensor` of shape `(B,)`, or `(B, classes)`, probabilities): The class of each image.
        strategy (`str`): `"inter_class"`, `"intra_class"`; all others let any two meet.

    Returns:
        `Tensor` of shape `(P, 2)`, int64: the model's `pairs`. P may be 0.
    """
    pairs = torch.arange(len(labels) // 2 * 2).view(-1, 2)
    if strategy not in ("inter_class", "intra_class"):
        return pairs
    classes = labels if labels.dim() == 1 else labels.argmax(dim=1)
    first, second = classes[pairs].unbind(dim=1)
    return pairs[(first == second) == (strategy == "intra_class")]


def count_unpaired(order: np.ndarray, labels: np.ndarray, batch_size: int, strategy: str) -> int:
    """How many images of an epoch (N,) meet no other in their batch; `labels` are those of the data set."""
    batches = torch.from_numpy(labels[order]).split(batch_size)
    return len(order) - sum(batch_pairs(batch, strategy).numel() for batch in batches)


def pair_up(labels: np.ndarray, strategy: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws partners among all images: as many pairs as the strategy allows.

    Args:
        labels (`np.ndarray` of shape `(N,)`): Class of each image.
        strategy (`str`):
            `"inter_class"`, `"intra_class"`, `"half"`: half of the pairs of either kind, if there are so many of one
            class; for all others any two images.
        rng (`np.random.Generator`): Source of the draw.

    Returns:
        `np.ndarray` of shape `(P, 2)` and `(M,)`: indices of the pairs' images, and of those without a partner.
    """
    order = rng.permutation(len(labels))
    if strategy == "intra_class":
        return _pair_same_class(order, labels)
    if strategy == "inter_class":
        return _pair_different_classes(order, labels)
    if strategy == "half":
        same_class = rng.permutation(_pair_same_class(order, labels)[0])[:len(labels) // 4]
        different_classes, unpaired = _pair_different_classes(order[~np.isin(order, same_class)], labels)
        return np.concatenate([same_class, different_classes]), unpaired
    return _consecutive_pairs(order)


def _consecutive_pairs(order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours (P, 2), and the last one (1,) of an odd number, or none (0,)."""
    paired = len(order) // 2 * 2
    return order[:paired].reshape(-1, 2), order[paired:]


def _pair_same_class(order: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours within each class; of an odd class the last one is left."""
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    unpaired = (starts + counts - 1)[counts % 2 == 1]
    return np.delete(by_class, unpaired).reshape(-1, 2), by_class[unpaired]


def _pair_different_classes(order: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours, of which those of one class change partners until none is left that could."""
    pairs, last = _consecutive_pairs(order)
    is_same_class = _is_same_class(pairs, labels)
    pairs, remaining = pairs[~is_same_class], np.concatenate([pairs[is_same_class].ravel(), last])
    # Among themselves: in the order of classes, the first half against the second. Alike are then images of one class.
    remaining = remaining[np.argsort(labels[remaining], kind="stable")]
    half = len(remaining) // 2
    rematched = np.stack([remaining[:half], remaining[len(remaining) - half:]], axis=1)
    last = remaining[half:len(remaining) - half]
    is_same_class = _is_same_class(rematched, labels)
    pairs, same_class = np.concatenate([rematched[~is_same_class], pairs]), rematched[is_same_class]
    if len(same_class) > 0:
        pairs, same_class = _swap_partners(pairs, same_class, labels)
    return pairs, np.concatenate([same_class.ravel(), last])


def _swap_partners(pairs: np.ndarray, same_class: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(a, a), (x, y) -> (a, x), (a, y)`, as often as there are pairs without class a, which all `same_class` are."""
    others = np.flatnonzero((labels[pairs] != labels[same_class[0, 0]]).all(axis=1))[:len(same_class)]
    swapped = np.stack([same_class[:len(others)], pairs[others]], axis=2).reshape(-1, 2)
    return np.concatenate([np.delete(pairs, others, axis=0), swapped]), same_class[len(others):]


def _is_same_class(pairs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    first, second = labels[pairs].T
    return first == second


def lay_out(pairs: np.ndarray, unpaired: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """An epoch's order: pairs at places 2k and 2k + 1 of batches, shuffled.

    Images without a partner stand side by side, where `batch_pairs` does not let them meet. The last place of an odd
    batch is for one of them, or, where there are too few, for one of a pair that is given up.

    Args:
        pairs (`np.ndarray` of shape `(P, 2)`), unpaired (`np.ndarray` of shape `(M,)`): From [`pair_up`].
        batch_size (`int`): Images per batch.

    Returns:
        `np.ndarray` of shape `(2P + M,)`.
    """
    num_singles = (pairs.size + len(unpaired)) // batch_size if batch_size % 2 == 1 else 0
    pairs, unpaired = rng.permutation(pairs), rng.permutation(unpaired)
    num_split = max(-(-(num_singles - len(unpaired)) // 2), 0)
    pairs, unpaired = pairs[num_split:], np.concatenate([unpaired, pairs[:num_split].ravel()])
    neighbours, last = _consecutive_pairs(unpaired[num_singles:])
    order = np.concatenate([rng.permutation(np.concatenate([pairs, neighbours])).ravel(), last])
    return np.insert(order, np.arange(1, num_singles + 1) * (batch_size - 1), unpaired[:num_singles]).astype(np.int64)


class PairSampler(Sampler[int]):
    """An epoch of all images in random order, partners side by side, drawn anew from (seed, epoch).

    Every process draws the same order, and accelerate gives process i batches i, i + n, ...

    Args:
        labels (sequence of `int`): (N,) class of each image; not looked at, unless the strategy is one of classes.
        batch_size (`int`): Images per batch of one process.
        strategy (`str`, *optional*, defaults to `"any"`): Of [`pair_up`].
        seed (`int`, *optional*, defaults to 0): Seed of all epochs.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, strategy: str = "any", seed: int = 0):
        self.labels = np.asarray(labels)
        self.batch_size = batch_size
        self.strategy = strategy
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[int]:
        yield from self.order().tolist()

    def order(self) -> np.ndarray:
        """The epoch's indices (N,)."""
        rng = np.random.default_rng([self.seed, self.epoch])
        return lay_out(*pair_up(self.labels, self.strategy, rng), self.batch_size, rng)

    def count_unpaired(self) -> int:
        """How many images of the epoch have no partner."""
        return count_unpaired(self.order(), self.labels, self.batch_size, self.strategy)


@dataclass
class PairCollator:
    """A data collator whose batches name their pairs.

    Args:
        collate (`Callable`): Makes a batch of samples.
        strategy (`str`): Of [`batch_pairs`].
        fraction (`float`): Share of a batch's pairs that take part, rounded, at least one.
    """

    collate: Callable[[list[Mapping[str, Any]]], dict[str, Tensor]]
    strategy: str
    fraction: float = 1.0

    def __call__(self, samples: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch, with `pairs` (P, 2). A sample's `distractor` is the image behind it."""
        samples = [image for sample in samples for image in with_distractor(sample)]
        batch = self.collate(samples)
        pairs = batch_pairs(batch["labels"], self.strategy)
        pairs = pairs[:max(round(self.fraction * len(pairs)), 1)]
        return {**batch, "pairs": pairs}


def with_distractor(sample: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A sample, and, if it has one, the distractor that comes with it, which no loss counts."""
    if "distractor" not in sample:
        return [sample]
    image = {name: value for name, value in sample.items() if name != "distractor"}
    return [image, {"pixel_values": sample["distractor"], "labels": IGNORED}]


class DistractedDataset(Dataset):
    """A training set whose images are distracted by those of another data set (an ablation of the paper, Table 4).

    Args:
        dataset: Gives samples with `pixel_values` and `labels`.
        distractors: Gives `pixel_values`; drawn from torch's random numbers, so by the seed of who loads the sample.
    """

    def __init__(self, dataset: Dataset, distractors: Dataset):
        self.dataset = dataset
        self.distractors = distractors

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        distractor = int(torch.randint(len(self.distractors), ()))
        return {**sample, "distractor": self.distractors[distractor]["pixel_values"]}


__all__ = ["PAIR_SAMPLING", "DistractedDataset", "PairCollator", "PairSampler", "batch_pairs", "lay_out", "pair_up"]
