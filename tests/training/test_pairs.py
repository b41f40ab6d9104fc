"""PWCA pair sampling: the pairs of a batch, and epochs ordered such that pairs satisfy a strategy."""

from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from dcal_hf.training import PairSampler
from dcal_hf.training.pairs import PairCollator, batch_pairs, order_pairs, pair_up


STRATEGIES = ("any", "inter_class", "intra_class", "half")
LABELS = {
    "even": np.repeat(np.arange(20), 6),
    "odd": np.repeat(np.arange(21), 5),
    "uneven": np.random.default_rng(0).integers(0, 7, size=101) ** 2,
    "one of each": np.arange(30),
    "mostly one": np.array([3] * 40 + [1, 2, 4] * 3),
    "one": np.zeros(9, dtype=int),
}


def pairs_of(sampler: PairSampler) -> np.ndarray:
    """Pairs (P, 2) of an epoch, determined batch by batch as in the collator."""
    batches = [np.array(batch) for batch in BatchSampler(sampler, sampler.batch_size, drop_last=False)]
    pairs = [batch[batch_pairs(torch.from_numpy(sampler.labels[batch]), sampler.pair_sampling)] for batch in batches]
    return np.concatenate(pairs)


def best_number_of_pairs(labels: np.ndarray, strategy: str) -> int:
    counts = np.array(list(Counter(labels.tolist()).values()))
    return {
        "any": len(labels) // 2,
        "inter_class": min(len(labels) // 2, len(labels) - counts.max()),
        "intra_class": (counts // 2).sum(),
    }[strategy]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_every_image_is_in_at_most_one_pair(labels, strategy):
    pairs, unpaired = pair_up(labels, strategy, np.random.default_rng(0))
    assert sorted([*pairs.ravel(), *unpaired]) == list(range(len(labels)))


@pytest.mark.parametrize("strategy", ["any", "inter_class", "intra_class"])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_an_epoch_has_as_many_pairs_as_the_strategy_allows(labels, strategy):
    for epoch in range(3):
        sampler = PairSampler(labels, 16, strategy)
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(len(labels)))
        pairs = pairs_of(sampler)
        same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
        assert strategy == "any" or (same == (strategy == "intra_class")).all()
        assert len(pairs) == best_number_of_pairs(labels, strategy)
        assert sampler.count_unpaired() == len(labels) - 2 * len(pairs)


@pytest.mark.parametrize(("name", "same"), [("even", 30), ("odd", 26), ("one of each", 0), ("one", 4)])
def test_half_pairs_images_of_the_same_class(name, same):
    sampler = PairSampler(LABELS[name], 16, "half")
    pairs = pairs_of(sampler)
    assert len(pairs) == len(LABELS[name]) // 2
    assert (LABELS[name][pairs[:, 0]] == LABELS[name][pairs[:, 1]]).sum() == same


@pytest.mark.parametrize("batch_size", [1, 3, 5, 15])
@pytest.mark.parametrize("strategy", ["any", "inter_class", "intra_class"])
def test_an_odd_batch_leaves_one_image_unpaired(batch_size, strategy):
    """21 classes of 5 images: `intra_class` leaves one of each unpaired in any case."""
    labels = LABELS["odd"]
    sampler = PairSampler(labels, batch_size, strategy)
    assert sorted(sampler) == list(range(len(labels)))
    batches = -(-len(labels) // batch_size)
    unpaired = max(batches, 21) if strategy == "intra_class" else batches
    assert unpaired <= sampler.count_unpaired() <= unpaired + 1


@pytest.mark.parametrize(
    ("strategy", "allowed"),
    [
        ("any", lambda labels: ~np.eye(6, dtype=bool)),
        ("inter_class", lambda labels: labels[:, None] != labels),
        ("intra_class", lambda labels: (labels[:, None] == labels) & ~np.eye(6, dtype=bool)),
    ],
)
def test_allowed_partners_are_equally_likely(strategy, allowed):
    """Classes of two images: all allowed partners are equally likely."""
    labels, rng, draws = np.array([0, 0, 1, 1, 2, 2]), np.random.default_rng(0), 4000
    counts = np.zeros((6, 6))
    for _ in range(draws):
        pairs, _ = pair_up(labels, strategy, rng)
        counts[pairs[:, 0], pairs[:, 1]] += 1
        counts[pairs[:, 1], pairs[:, 0]] += 1
    expected = allowed(labels) / allowed(labels).sum(1, keepdims=True)
    np.testing.assert_allclose(counts / draws, expected, atol=0.04)


def test_pairs_are_spread_over_the_epoch():
    """Including the pairs that were sampled last, and the unpaired images."""
    labels = LABELS["mostly one"]
    places = []
    for epoch in range(200):
        sampler = PairSampler(labels, 8, "inter_class")
        sampler.set_epoch(epoch)
        places.append(np.flatnonzero(labels[np.array(list(sampler))] != 3).mean())
    assert np.mean(places) == pytest.approx(24, abs=1.5)


def test_the_order_is_a_function_of_seed_and_epoch():
    first, again = (PairSampler(LABELS["uneven"], 16, "half", seed=3) for _ in range(2))
    order = list(first)
    np.random.seed(1)
    torch.manual_seed(1)
    assert list(again) == order == list(first)
    again.set_epoch(1)
    assert list(again) != order
    assert list(PairSampler(LABELS["uneven"], 16, "half", seed=4)) != order


@pytest.mark.parametrize("strategy", ["inter_class", "intra_class"])
@pytest.mark.parametrize("batch_size", [5, 8])
def test_two_processes_have_the_pairs_of_one(strategy, batch_size):
    """Including a last batch that is filled with images from the start of the epoch."""
    labels = LABELS["uneven"]
    sampler = PairSampler(labels, batch_size, strategy)
    batches = BatchSampler(sampler, batch_size, drop_last=False)
    seen = []
    for process in range(2):
        for batch in map(np.array, BatchSamplerShard(batches, 2, process)):
            pairs = batch[batch_pairs(torch.from_numpy(labels[batch]), strategy)]
            assert ((labels[pairs[:, 0]] == labels[pairs[:, 1]]) == (strategy == "intra_class")).all()
            seen += [tuple(pair) for pair in pairs.tolist()]
    assert {tuple(pair) for pair in pairs_of(sampler).tolist()} <= set(seen)


def test_labels_may_be_probabilities():
    labels = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    assert batch_pairs(labels, "any").tolist() == [[0, 1], [2, 3]]
    assert batch_pairs(labels, "intra_class").tolist() == [[0, 1]]
    assert batch_pairs(labels, "inter_class").tolist() == [[2, 3]]


def test_pairs_start_at_even_positions():
    pairs, unpaired = np.arange(10).reshape(5, 2), np.array([10, 11, 12])
    order = order_pairs(pairs, unpaired, 4, np.random.default_rng(0))
    places = {image: place for place, image in enumerate(order.tolist())}
    assert all(places[second] == places[first] + 1 and places[first] % 2 == 0 for first, second in pairs)


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 4), (0.5, 2), (0.6, 2), (0.01, 1)])
def test_the_collator_uses_a_fraction_of_the_pairs(fraction, count):
    collator = PairCollator(lambda samples: {"labels": torch.tensor(samples)}, "any", fraction)
    samples = [{"labels": 0}] * 9
    collator.collate = lambda samples: {"labels": torch.tensor([sample["labels"] for sample in samples])}
    batch = collator(samples)
    assert batch["pairs"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]][:count] and len(batch["labels"]) == 9


def test_distractors_may_be_flipped_arrays():
    """torch has no negative strides."""
    picture = np.arange(12.0).reshape(3, 2, 2)
    batch = {"pixel_values": torch.zeros(1, 3, 2, 2), "labels": torch.tensor([0])}
    collator = PairCollator(lambda samples: batch, "any")
    collated = collator([{"distractor": picture[:, :, ::-1]}])
    assert torch.equal(collated["pixel_values"][1].double(), torch.from_numpy(picture).flip(2))
