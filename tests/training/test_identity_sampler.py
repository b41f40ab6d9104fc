from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from dcal_hf.training.samplers import IdentityBalancedSampler, draw_groups, schedule_identities


def labels_of(counts):
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


def shards(sampler, num_processes):
    batches = BatchSampler(sampler, sampler.batch_size, drop_last=False)
    return [list(BatchSamplerShard(batches, num_processes, process)) for process in range(num_processes)]


UNEVEN = np.random.default_rng(1).integers(1, 30, size=80)


@pytest.mark.parametrize("size, per_identity", [(16, 4), (12, 2), (32, 8), (6, 1), (8, 8)])
def test_every_batch_has_p_identities_of_k_images(size, per_identity):
    labels = labels_of(UNEVEN)
    order = np.array(list(IdentityBalancedSampler(labels, size, per_identity)))
    for batch in order.reshape(-1, size):
        counts = Counter(labels[batch].tolist())
        assert len(counts) == size // per_identity
        assert set(counts.values()) == {per_identity}


@pytest.mark.parametrize("counts", [UNEVEN, [20] * 88, [1] * 50, [5] * 30, [400] + [2] * 20, [1] * 4, [9, 5, 2, 30]])
@pytest.mark.parametrize("batches_per_step", [1, 3])
def test_the_length_is_exact_and_about_one_pass(counts, batches_per_step):
    sampler = IdentityBalancedSampler(labels_of(counts), 16, 4, batches_per_step=batches_per_step)
    assert len(list(sampler)) == len(sampler)
    assert len(sampler) == max(sum(counts) // 16 * 16, 16)


def test_images_repeat_within_a_group_only_if_there_are_too_few():
    labels = labels_of(UNEVEN)
    order = np.array(list(IdentityBalancedSampler(labels, 16, 4))).reshape(-1, 4)
    for group in order:
        available = UNEVEN[labels[group[0]]]
        assert len(set(group.tolist())) == min(available, 4)


def test_equal_identities_are_sampled_exactly_once():
    sampler = IdentityBalancedSampler(labels_of([8] * 64), 32, 4)
    assert sorted(sampler) == list(range(512))


def test_identities_are_sampled_in_proportion_to_their_images():
    labels = labels_of([40] * 20 + [8] * 20)
    seen = Counter(labels[list(IdentityBalancedSampler(labels, 16, 4))].tolist())
    assert all(36 <= seen[identity] <= 40 for identity in range(20))
    assert all(4 <= seen[identity] <= 8 for identity in range(20, 40))


def test_every_image_is_sampled_over_several_epochs():
    sampler = IdentityBalancedSampler(labels_of(UNEVEN), 16, 4)
    seen = set()
    for epoch in range(12):
        sampler.set_epoch(epoch)
        seen |= set(sampler)
    assert seen == set(range(UNEVEN.sum()))


def test_a_large_identity_is_at_most_once_in_a_batch():
    labels = labels_of([1000] + [3] * 40)
    order = np.array(list(IdentityBalancedSampler(labels, 32, 4))).reshape(-1, 8, 4)
    assert len(order) == 1120 // 32
    identities = labels[order[:, :, 0]]
    assert all(len(set(batch)) == 8 for batch in identities.tolist())
    assert (identities == 0).sum() > 0.8 * len(order)


def test_the_order_is_a_function_of_seed_and_epoch():
    labels = labels_of(UNEVEN)
    first, again = IdentityBalancedSampler(labels, 16, 4, seed=3), IdentityBalancedSampler(labels, 16, 4, seed=3)
    assert list(first) == list(first) == list(again)
    torch.manual_seed(1)
    np.random.seed(1)
    assert list(first) == list(again)
    again.set_epoch(1)
    assert list(again) != list(first)
    first.set_epoch(1)
    assert list(again) == list(first)
    assert list(IdentityBalancedSampler(labels, 16, 4, seed=4)) != list(IdentityBalancedSampler(labels, 16, 4, seed=3))


def test_batches_differ_within_and_between_epochs():
    labels = labels_of([16] * 40)
    sampler = IdentityBalancedSampler(labels, 16, 4)
    together = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        together += [frozenset(labels[batch].tolist()) for batch in np.array(list(sampler)).reshape(-1, 16)]
    assert len(set(together)) > 0.95 * len(together)


def test_identities_are_spread_over_the_epoch():
    identities = schedule_identities(np.full(100, 8), 100, 1, np.random.default_rng(0))
    batches = [np.flatnonzero((identities == identity).any(axis=1)) for identity in range(100)]
    assert all(len(places) == 8 for places in batches)
    assert np.mean([places.mean() for places in batches]) == pytest.approx(49.5, abs=1)
    assert min(np.ptp(places) for places in batches) > 60


@pytest.mark.parametrize("counts", [[20] * 88, np.random.default_rng(2).integers(2, 72, size=751)])
@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_share_no_identity_in_a_step(counts, num_processes):
    labels = labels_of(counts)
    sampler = IdentityBalancedSampler(labels, 64, 4, batches_per_step=num_processes)
    per_process = shards(sampler, num_processes)
    whole_steps = len(sampler) // 64 // num_processes
    for batches in list(zip(*per_process))[:whole_steps]:
        assert len(set(labels[np.concatenate(batches)].tolist())) == 16 * num_processes


def test_two_processes_sample_like_one():
    sampler = IdentityBalancedSampler(labels_of([20] * 88), 64, 4, batches_per_step=2)
    (single,), (first, second) = shards(sampler, 1), shards(sampler, 2)
    assert len(single) == 27
    assert single[::2] == first
    assert single[1::2] == second[:-1]
    assert len(first) == len(second)
    labels = labels_of([20] * 88)
    assert len(set(labels[second[-1]].tolist())) == 16


@pytest.mark.parametrize(("size", "per_identity"), [(16, 4), (12, 2), (15, 5), (8, 4), (9, 3)])
def test_partners_are_of_different_identities(size, per_identity):
    """Pairing does not change which images are in a batch. A batch of odd size leaves one image unpaired."""
    labels = labels_of(UNEVEN)
    plain, paired = (
        IdentityBalancedSampler(labels, size, per_identity, pair_sampling=strategy)
        for strategy in (None, "inter_class")
    )
    order = np.array(list(paired)).reshape(-1, size)
    assert np.array_equal(np.sort(order), np.sort(np.array(list(plain)).reshape(-1, size)))
    first, second = labels[order[:, :size // 2 * 2]].reshape(len(order), -1, 2).transpose(2, 0, 1)
    assert (first != second).all()
    assert paired.count_unpaired() == len(order) * (size % 2)


def test_labels_may_be_any_integers():
    labels = labels_of([6] * 10)
    order = list(IdentityBalancedSampler(labels, 8, 4))
    assert list(IdentityBalancedSampler(torch.from_numpy(labels * 7 - 3), 8, 4)) == order
    assert list(IdentityBalancedSampler(labels.tolist(), 8, 4)) == order


@pytest.mark.parametrize("counts, batches, per_batch", [([9, 5, 2, 30], 3, 4), ([100, 1, 1], 20, 2), ([7] * 9, 5, 3)])
def test_the_numbers_of_groups_can_be_scheduled(counts, batches, per_batch):
    total = draw_groups(counts, batches, per_batch, 4, np.random.default_rng(0))
    assert total.sum() == batches * per_batch
    assert total.max() <= batches
    schedule = schedule_identities(total, batches, 1, np.random.default_rng(0))
    assert np.array_equal(np.bincount(schedule.ravel(), minlength=len(counts)), total)
    assert all(len(set(batch)) == per_batch for batch in schedule.tolist())


def test_batch_size_must_be_a_multiple_of_k():
    with pytest.raises(ValueError, match="batch of 18 images does not divide into identities of 4 images: make"):
        IdentityBalancedSampler([0, 1] * 20, 18, 4)


def test_too_few_identities_are_rejected():
    with pytest.raises(ValueError, match="needs 4 identities, and there are 3: make per_device_train_batch_size"):
        IdentityBalancedSampler([0, 1, 2] * 20, 16, 4)
