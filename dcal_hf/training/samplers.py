"""Batches of re-identification: which identities meet in a batch."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from .pairs import count_unpaired, lay_out, pair_up


class IdentityBalancedSampler(Sampler[int]):
    """Indices of an epoch in batches of P identities with K images each, drawn anew from (seed, epoch).

    Batches: Hermans et al. 2017 (https://arxiv.org/abs/1703.07737), section 2. As in TransReID
    (https://github.com/damo-cv/TransReID), an identity of n images comes about n / K times an epoch, each time with
    the next K of its shuffled images, so that an epoch is about once through the images: `len(labels)` indices,
    rounded down to whole batches. Identities of few images repeat them where they have fewer than K, or where batches
    of different identities cannot be made otherwise.

    Every process draws the same order, and accelerate gives process i batches i, i + n, ...

    Args:
        labels (sequence of `int`): (N,) identity of each image.
        batch_size (`int`): Images per batch, P x K.
        instances_per_identity (`int`, *optional*, defaults to 4): K.
        seed (`int`, *optional*, defaults to 0): Seed of all epochs.
        batches_per_step (`int`, *optional*, defaults to 1):
            The number of processes: so many successive batches share as few identities as they can.
        pair_sampling (`str`, *optional*):
            Arranges each batch so that images 2k and 2k + 1 may be a pair, see [`~dcal_hf.training.pairs.pair_up`]; if
            not given, an identity's images stand together.

    Raises:
        ValueError: if the batch does not divide into identities of K images, or there are fewer than P identities.
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
        if batch_size % instances_per_identity != 0:
            raise ValueError(
                f"A batch of {batch_size} images does not divide into identities of {instances_per_identity} images: "
                "make the batch size per device a multiple of instances_per_identity."
            )
        _, self.labels = np.unique(labels, return_inverse=True)
        counts = np.bincount(self.labels)
        if len(counts) * instances_per_identity < batch_size:
            raise ValueError(
                f"A batch of {batch_size} images, {instances_per_identity} of an identity, needs "
                f"{batch_size // instances_per_identity} identities, and there are {len(counts)}: make the batch size "
                "smaller or instances_per_identity larger."
            )
        self.images = np.split(np.argsort(self.labels, kind="stable"), np.cumsum(counts)[:-1])
        self.batch_size = batch_size
        self.instances_per_identity = instances_per_identity
        self.batches_per_step = batches_per_step
        self.pair_sampling = pair_sampling
        self.seed = seed
        self.epoch = 0
        self.num_batches = max(len(labels) // batch_size, 1)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        yield from self.order().tolist()

    def order(self) -> np.ndarray:
        """The epoch's indices, P x K of each batch in turn."""
        batches = self.groups().reshape(-1, self.batch_size)
        if self.pair_sampling is None:
            return batches.ravel()
        # Random numbers of its own: who is in a batch does not depend on who meets whom.
        rng = np.random.default_rng([self.seed, self.epoch, 1])
        arranged = (
            lay_out(*pair_up(self.labels[batch], self.pair_sampling, rng), self.batch_size, rng) for batch in batches
        )
        return np.concatenate([batch[positions] for batch, positions in zip(batches, arranged)])

    def count_unpaired(self) -> int:
        """How many images of the epoch have no partner."""
        return count_unpaired(self.order(), self.labels, self.batch_size, self.pair_sampling)

    def groups(self) -> np.ndarray:
        """The epoch's indices, K of an identity in turn."""
        rng = np.random.default_rng([self.seed, self.epoch])
        size = self.instances_per_identity
        counts = list(map(len, self.images))
        total = draw_groups(counts, self.num_batches, self.batch_size // size, size, rng)
        # An identity's images in turn, and from the first again where they do not fill its groups.
        images = [
            iter(np.resize(rng.permutation(members), count * size))
            for members, count in zip(self.images, total)
        ]
        schedule = schedule_identities(total, self.num_batches, self.batches_per_step, rng)
        return np.array([next(images[identity]) for identity in schedule.ravel() for _ in range(size)])


def draw_groups(
    counts: Sequence[int], num_batches: int, identities_per_batch: int, group_size: int, rng: np.random.Generator
) -> np.ndarray:
    """How often each identity comes in an epoch: about as often as its images fill a group.

    Batches of different identities take an identity at most once each, so identities of many images may come less
    often, and those of the fewest images then come more often than that.

    Args:
        counts (sequence of `int`): (I,) images of each identity.
        num_batches (`int`): T.
        identities_per_batch (`int`): P, at most I.
        group_size (`int`): K.
        rng (`np.random.Generator`): Chooses what is left out of a rounded number of groups that is too large.

    Returns:
        `np.ndarray` of shape `(I,)`, int64: numbers from 0 to T, P x T in all.
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
    """Spreads identities over an epoch: different ones in a batch, and in a step as far as possible.

    The k-th of an identity's g groups is due at a random moment of the k-th g-th of the epoch. A batch takes groups
    that are due first; but before them those of identities that all remaining batches need, and after them those of
    identities that the step has seen.

    Args:
        total (`np.ndarray` of shape `(I,)`): How often each identity comes, at most T times; P x T in all.
        num_batches (`int`): T.
        batches_per_step (`int`): Successive batches, counted from the first, that should share no identity.
        rng (`np.random.Generator`): Source of the moments.

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
    """When the next group of each identity is due, in [0, 1); infinite where all are taken."""
    moment = (num_scheduled + rng.random(len(num_scheduled))) / np.maximum(total, 1)
    return np.where(num_scheduled < total, moment, np.inf)


__all__ = ["IdentityBalancedSampler", "draw_groups", "schedule_identities"]
