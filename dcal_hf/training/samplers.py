"""The order of training images: with partners adjacent, and in identity-balanced batches for re-identification."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from .pairs import count_unpaired, order_pairs, pair_up


class EpochSampler(Sampler[int]):
    """Samples the images of an epoch in pairs, as a function of (seed, epoch). Derived classes define `order`.

    Every process samples the same order, and accelerate gives batches i, i + n, ... to process i.

    Args:
        labels (sequence of `int`): (N,) class or identity of each image.
        batch_size (`int`): Images per batch of one process.
        pair_sampling (`str`, *optional*): Strategy of [`~dcal_hf.training.pairs.pair_up`].
        seed (`int`): Seed of all epochs.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, pair_sampling: str | None, seed: int):
        self.labels = np.asarray(labels)
        self.batch_size = batch_size
        self.pair_sampling = pair_sampling
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the order depends on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from self.order().tolist()

    def order(self) -> np.ndarray:
        """Indices of the epoch, images 2k and 2k + 1 of a batch being a pair."""
        raise NotImplementedError

    def count_unpaired(self) -> int:
        """Number of images of the epoch without a partner."""
        return count_unpaired(self.order(), self.labels, self.batch_size, self.pair_sampling)


class PairSampler(EpochSampler):
    """Samples all images of an epoch in random order, with partners adjacent.

    Args:
        labels (sequence of `int`): (N,) class of each image; ignored unless the strategy depends on the classes.
        batch_size (`int`): Images per batch of one process.
        strategy (`str`, *optional*, defaults to `"any"`): Strategy of [`~dcal_hf.training.pairs.pair_up`].
        seed (`int`, *optional*, defaults to 0): Seed of all epochs.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, strategy: str = "any", seed: int = 0):
        super().__init__(labels, batch_size, strategy, seed)

    def __len__(self) -> int:
        return len(self.labels)

    def order(self) -> np.ndarray:
        rng = np.random.default_rng([self.seed, self.epoch])
        return order_pairs(*pair_up(self.labels, self.pair_sampling, rng), self.batch_size, rng)


class IdentityBalancedSampler(EpochSampler):
    """Samples an epoch in batches of P identities with K images each.

    Batches: Hermans et al. 2017 (https://arxiv.org/abs/1703.07737), section 2. As in TransReID
    (https://github.com/damo-cv/TransReID), an identity of n images is sampled about n / K times per epoch, each time
    with the next K of its shuffled images, so an epoch is about one pass over the images: `len(labels)` indices,
    rounded down to full batches. Images are repeated if their identity has fewer than K, or if there are not enough
    distinct identities for a batch otherwise.

    Args:
        labels (sequence of `int`): (N,) identity of each image.
        batch_size (`int`): Images per batch, P x K.
        instances_per_identity (`int`, *optional*, defaults to 4): K.
        seed (`int`, *optional*, defaults to 0): Seed of all epochs.
        batches_per_step (`int`, *optional*, defaults to 1):
            Batches of an optimiser step, over all processes and accumulation steps. They share as few identities as
            possible.
        pair_sampling (`str`, *optional*):
            Orders each batch such that images 2k and 2k + 1 are a pair, see [`~dcal_hf.training.pairs.pair_up`]. By
            default, the images of an identity are adjacent.

    Raises:
        ValueError: If K is below 1, the batch does not divide into identities of K images, or there are fewer than
            P identities.
    """

    def __init__(
        self,
        labels: Sequence[int],
        batch_size: int,
        instances_per_identity: int = 4,
        seed: int = 0,
        batches_per_step: int = 1,
        pair_sampling: str | None = None,
    ):
        if instances_per_identity < 1:
            raise ValueError(
                f"instances_per_identity={instances_per_identity} must be at least 1, and 2 for triplets with two "
                "images of an identity."
            )
        if batch_size % instances_per_identity != 0:
            raise ValueError(
                f"A batch of {batch_size} images does not divide into identities of {instances_per_identity} images: "
                "make the batch size per device a multiple of instances_per_identity."
            )
        super().__init__(labels, batch_size, pair_sampling, seed)
        _, identities, counts = np.unique(labels, return_inverse=True, return_counts=True)
        if len(counts) * instances_per_identity < batch_size:
            raise ValueError(
                f"A batch of {batch_size} images, {instances_per_identity} per identity, needs "
                f"{batch_size // instances_per_identity} identities, and there are {len(counts)}: make "
                "per_device_train_batch_size smaller or instances_per_identity larger."
            )
        self.images = np.split(np.argsort(identities, kind="stable"), np.cumsum(counts)[:-1])
        self.instances_per_identity = instances_per_identity
        self.batches_per_step = batches_per_step
        self.num_batches = max(len(labels) // batch_size, 1)

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def order(self) -> np.ndarray:
        """Indices of the epoch, batch by batch, P x K each."""
        batches = self.groups().reshape(-1, self.batch_size)
        if self.pair_sampling is None:
            return batches.ravel()
        # A separate generator: which images are in a batch does not depend on how they are paired.
        rng = np.random.default_rng([self.seed, self.epoch, 1])
        arranged = (
            order_pairs(*pair_up(self.labels[batch], self.pair_sampling, rng), self.batch_size, rng)
            for batch in batches
        )
        return np.concatenate([batch[positions] for batch, positions in zip(batches, arranged)])

    def groups(self) -> np.ndarray:
        """Indices of the epoch in groups of K images of one identity."""
        rng = np.random.default_rng([self.seed, self.epoch])
        size = self.instances_per_identity
        counts = list(map(len, self.images))
        total = draw_groups(counts, self.num_batches, self.batch_size // size, size, rng)
        # The shuffled images of an identity, repeated from the first if they do not fill its groups.
        images = [
            iter(np.resize(rng.permutation(members), count * size))
            for members, count in zip(self.images, total)
        ]
        schedule = schedule_identities(total, self.num_batches, self.batches_per_step, rng)
        return np.array([next(images[identity]) for identity in schedule.ravel() for _ in range(size)])


def draw_groups(
    counts: Sequence[int], num_batches: int, identities_per_batch: int, group_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Samples the number of groups of each identity in an epoch: about as many as its images fill.

    A batch contains an identity at most once, so an identity of many images may get fewer groups than its images fill.
    The identities of the fewest images then get more.

    Args:
        counts (sequence of `int`): (I,) images of each identity.
        num_batches (`int`): T.
        identities_per_batch (`int`): P, at most I.
        group_size (`int`): K.
        rng (`np.random.Generator`): Chooses the groups to drop if the rounded numbers sum to more than P x T.

    Returns:
        `np.ndarray` of shape `(I,)`, int64: numbers from 0 to T with sum P x T.
    """
    needed = num_batches * identities_per_batch
    groups = (np.asarray(counts) + group_size // 2) // group_size
    candidates = (np.clip(groups, fewest, num_batches) for fewest in range(1, num_batches + 1))
    groups = next(candidate for candidate in candidates if candidate.sum() >= needed)
    chosen = rng.choice(np.repeat(np.arange(len(groups)), groups), needed, replace=False)
    return np.bincount(chosen, minlength=len(groups))


def schedule_identities(
    total: np.ndarray, num_batches: int, batches_per_step: int, rng: np.random.Generator
) -> np.ndarray:
    """Spreads identities over an epoch, distinct within a batch and, as far as possible, within a step.

    An epoch is divided into g equal intervals for an identity of g groups, and its k-th group is due at a random time
    in the k-th interval. A batch takes the groups due first. Identities that every remaining batch needs take
    precedence; identities that the step already contains come last.

    Args:
        total (`np.ndarray` of shape `(I,)`): Number of groups of each identity, at most T, with sum P x T.
        num_batches (`int`): T.
        batches_per_step (`int`): Number of successive batches, counted from the first, that should share no identity.
        rng (`np.random.Generator`): Source of the random times.

    Returns:
        `np.ndarray` of shape `(T, P)`, int64: indices of identities.
    """
    identities_per_batch = int(total.sum()) // num_batches
    num_scheduled = np.zeros_like(total)
    due = _next_due(num_scheduled, total, rng)
    schedule = np.empty((num_batches, identities_per_batch), dtype=np.int64)
    for number in range(num_batches):
        if number % batches_per_step == 0:
            seen = np.zeros(len(total), dtype=bool)
        needed = total - num_scheduled == num_batches - number
        priority = np.where(needed, -1.0, due + seen)
        chosen = np.sort(np.argpartition(priority, identities_per_batch - 1)[:identities_per_batch])
        schedule[number] = chosen
        seen[chosen] = True
        num_scheduled[chosen] += 1
        due[chosen] = _next_due(num_scheduled[chosen], total[chosen], rng)
    return schedule


def _next_due(num_scheduled: np.ndarray, total: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Time at which the next group of each identity is due, in [0, 1); infinite if all of them are scheduled."""
    moment = (num_scheduled + rng.random(len(num_scheduled))) / np.maximum(total, 1)
    return np.where(num_scheduled < total, moment, np.inf)


__all__ = ["EpochSampler", "IdentityBalancedSampler", "PairSampler", "draw_groups", "schedule_identities"]
