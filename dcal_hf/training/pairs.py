"""PWCA pair sampling: which two images distract each other.

Images 2k and 2k + 1 of a batch are a pair if the strategy allows it. The sampler orders the epoch accordingly, so no
random numbers are needed at a step. Paper: section 3.3, and Table 4 for the strategies
(https://huggingface.co/papers/2205.02151).
"""

import operator
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..metrics.distances import as_tensor
from ..models.loss_dcal import IGNORED


BUILT_IN = ("any", "inter_class", "intra_class", "half", "noise")
# `register_pair_strategy` adds to both.
PAIR_SAMPLING = list(BUILT_IN)
# Which classes may be paired, as a function of two arrays of classes; strategies that are missing here allow all.
RULES: dict[str, Callable[[Any, Any], Any]] = {"inter_class": operator.ne, "intra_class": operator.eq}


def register_pair_strategy(
    name: str, allows: Callable[[np.ndarray, np.ndarray], np.ndarray], exist_ok: bool = False
) -> None:
    """Adds a value of `pair_sampling`: two images may distract each other if their classes are allowed to.

    Args:
        name (`str`): The value.
        allows (`Callable`):
            Two arrays of classes (N,), int64 -> bool (N,), whether each two may be paired. Must be symmetric and
            depend on the classes only. Data-loading processes that do not fork import it by its name.
        exist_ok (`bool`, *optional*, defaults to `False`): Whether to replace a registered strategy of this name.

    Raises:
        TypeError: If `allows` is not callable.
        ValueError: If there is a strategy of this name already, unless it was registered and `exist_ok`.
    """
    if not callable(allows):
        raise TypeError(f"The pair strategy '{name}' must be a function of two arrays of classes, got {allows!r}.")
    if name in BUILT_IN:
        raise ValueError(f"There is a pair strategy '{name}' already: choose another name.")
    if name in RULES and not exist_ok:
        raise ValueError(f"There is a pair strategy '{name}' already: pass exist_ok=True to replace it.")
    if name not in RULES:
        PAIR_SAMPLING.append(name)
    RULES[name] = allows


def depends_on_classes(strategy: str) -> bool:
    """Whether a strategy depends on the classes of the images."""
    return strategy == "half" or strategy in RULES


def batch_pairs(labels: Tensor, strategy: str) -> Tensor:
    """Pairs images 2k and 2k + 1 of a batch if the strategy allows it.

    Args:
        labels (`Tensor` of shape `(B,)`, or `(B, classes)` for probabilities): The class of each image.
        strategy (`str`): `"inter_class"`, `"intra_class"` or a registered one; any other allows all pairs.

    Returns:
        `Tensor` of shape `(P, 2)`, int64: the `pairs` argument of the model. P may be 0.
    """
    return allowed_pairs(labels, RULES.get(strategy))


def allowed_pairs(labels: Tensor, allows: Callable[[Any, Any], Any] | None) -> Tensor:
    """[`batch_pairs`] by the rule of the strategy, one of `RULES`; None allows all pairs."""
    pairs = torch.arange(len(labels) // 2 * 2).view(-1, 2)
    if allows is None:
        return pairs
    classes = labels if labels.dim() == 1 else labels.argmax(dim=1)
    first, second = classes[pairs].numpy().T
    return pairs[torch.from_numpy(np.asarray(allows(first, second), dtype=bool))]


def count_unpaired(order: np.ndarray, labels: np.ndarray, batch_size: int, strategy: str) -> int:
    """Number of images of an epoch (N,) without a partner in their batch; `labels` are those of the data set."""
    batches = torch.from_numpy(labels[order]).split(batch_size)
    return len(order) - sum(batch_pairs(batch, strategy).numel() for batch in batches)


def pair_up(labels: np.ndarray, strategy: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Samples as many pairs of images as the strategy allows.

    Args:
        labels (`np.ndarray` of shape `(N,)`): Class of each image.
        strategy (`str`):
            `"inter_class"`, `"intra_class"`, `"half"` for half of the pairs of either kind, if there are enough of the
            same class, or a registered one, which is paired greedily; any other allows all pairs.
        rng (`np.random.Generator`): Source of random numbers.

    Returns:
        `np.ndarray` of shape `(P, 2)` and `(M,)`: indices of the paired and of the unpaired images.
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
    if strategy in RULES:
        return _pair_by_rule(order, labels, RULES[strategy], rng)
    return _consecutive_pairs(order)


def _consecutive_pairs(order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Consecutive images as pairs (P, 2), and the last image (1,) if their number is odd, else none (0,)."""
    paired = len(order) // 2 * 2
    return order[:paired].reshape(-1, 2), order[paired:]


def _pair_same_class(order: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs consecutive images within each class; a class of odd size leaves its last image unpaired."""
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    unpaired = (starts + counts - 1)[counts % 2 == 1]
    return np.delete(by_class, unpaired).reshape(-1, 2), by_class[unpaired]


def _pair_different_classes(order: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs consecutive images, then exchanges the partners of pairs of the same class as long as that is possible."""
    pairs, last = _consecutive_pairs(order)
    is_same_class = _is_same_class(pairs, labels)
    pairs, remaining = pairs[~is_same_class], np.concatenate([pairs[is_same_class].ravel(), last])
    # First exchange among themselves: sorted by class, the first half against the second half. The pairs of the same
    # class that are left then all have one class.
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
    """`(a, a), (x, y) -> (a, x), (a, y)` for each pair without class a, the class of all `same_class` pairs."""
    others = np.flatnonzero((labels[pairs] != labels[same_class[0, 0]]).all(axis=1))[:len(same_class)]
    swapped = np.stack([same_class[:len(others)], pairs[others]], axis=2).reshape(-1, 2)
    return np.concatenate([np.delete(pairs, others, axis=0), swapped]), same_class[len(others):]


def _pair_by_rule(
    order: np.ndarray, labels: np.ndarray, allows: Callable[[Any, Any], Any], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs each image in turn with a random one of those that are left and allowed.

    Raises:
        ValueError: If the rule is not symmetric.
    """
    classes, own = np.unique(labels, return_inverse=True)
    allowed = np.array([allows(np.full(len(classes), number), classes) for number in classes], dtype=bool)
    if (allowed != allowed.T).any():
        first, second = classes[np.argwhere(allowed != allowed.T)[0]]
        raise ValueError(
            f"The pair strategy allows classes {first} and {second} in one order only: make it symmetric."
        )
    waiting = [deque(order[own[order] == number]) for number in range(len(classes))]
    counts = np.bincount(own)
    pairs, unpaired, is_paired = [], [], np.zeros(len(labels), dtype=bool)
    for image in order:
        if is_paired[image]:
            continue
        # It is the first of its class: those before it in the order have been paired or left.
        waiting[own[image]].popleft()
        counts[own[image]] -= 1
        left = np.cumsum(counts * allowed[own[image]])
        if left[-1] == 0:
            unpaired.append(image)
            continue
        partner = waiting[np.searchsorted(left, rng.integers(left[-1]), side="right")].pop()
        counts[own[partner]] -= 1
        is_paired[partner] = True
        pairs.append((image, partner))
    return np.array(pairs, dtype=order.dtype).reshape(-1, 2), np.array(unpaired, dtype=order.dtype)


def _is_same_class(pairs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    first, second = labels[pairs].T
    return first == second


def order_pairs(pairs: np.ndarray, unpaired: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Order of an epoch: shuffled, with the images of a pair at positions 2k and 2k + 1 of a batch.

    Unpaired images are adjacent, where `batch_pairs` does not pair them. The last position of an odd batch takes an
    unpaired image; if there are too few, some pairs are split.

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


@dataclass
class PairCollator:
    """A data collator that adds the pairs of a batch.

    Args:
        collate (`Callable`): Collates samples into a batch.
        strategy (`str`): Strategy of [`batch_pairs`].
        fraction (`float`): Share of the pairs of a batch to use. Their number is rounded and at least one.
    """

    collate: Callable[[list[Mapping[str, Any]]], dict[str, Tensor]]
    strategy: str
    fraction: float = 1.0

    def __post_init__(self):
        # A process that loads data but was not forked has no registered strategies.
        self.allows = RULES.get(self.strategy)

    def __call__(self, samples: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch, with `pairs` (P, 2). The `distractor` of a sample becomes the next image of the batch.

        Raises:
            ValueError: If the batch has no labels.
        """
        distractors = [as_tensor(sample["distractor"]) for sample in samples if "distractor" in sample]
        batch = self.collate([{key: sample[key] for key in sample if key != "distractor"} for sample in samples])
        if "labels" not in batch:
            raise ValueError(
                f"Training needs labels, but a batch has only {', '.join(batch)}: the training data set must yield "
                "'pixel_values' and 'labels' (or 'label')."
            )
        if distractors:
            batch = with_distractors(batch, torch.stack(distractors))
        pairs = allowed_pairs(batch["labels"], self.allows)
        pairs = pairs[:max(round(self.fraction * len(pairs)), 1)]
        return {**batch, "pairs": pairs}


def with_distractors(batch: dict[str, Tensor], distractors: Tensor) -> dict[str, Tensor]:
    """Inserts a distractor behind each image, with a label ignored by all losses, or a row of it for probabilities.

    After the user's collator, which may mix images and labels.
    """
    labels = batch["labels"]
    behind = {"pixel_values": distractors, "labels": torch.full_like(labels, IGNORED)}
    merged = {name: torch.stack([batch[name], added], dim=1).flatten(0, 1) for name, added in behind.items()}
    return {**batch, **merged}


class DistractedDataset(Dataset):
    """A training set with distractors from another data set (an ablation of the paper, Table 4).

    Args:
        dataset: Samples with `pixel_values` and `labels`.
        distractors:
            Samples with `pixel_values`. One is sampled for each image from torch's default generator, and so depends
            on the seed of the process that loads the image.
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


__all__ = [
    "PAIR_SAMPLING",
    "DistractedDataset",
    "PairCollator",
    "batch_pairs",
    "depends_on_classes",
    "order_pairs",
    "pair_up",
    "register_pair_strategy",
]
