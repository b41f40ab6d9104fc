import pytest
import torch

from dcal_hf.samplers import sample_pairs


LABELS = torch.tensor([0, 0, 0, 1, 1, 2])


def frequencies(strategy, draws=4000):
    counts = torch.zeros(6, 6)
    for _ in range(draws):
        counts[torch.arange(6), sample_pairs(LABELS, strategy)] += 1
    return counts / draws


@pytest.mark.parametrize(
    ("strategy", "allowed"),
    [
        ("any", lambda i, j: i != j),
        ("inter_class", lambda i, j: LABELS[i] != LABELS[j]),
        ("intra_class", lambda i, j: LABELS[i] == LABELS[j] and i != j),
    ],
)
def test_partners_are_uniform_over_the_allowed_images(strategy, allowed):
    expected = torch.tensor([[float(allowed(i, j)) for j in range(6)] for i in range(6)])
    if strategy == "intra_class":
        expected[5, 5] = 1.0  # alone in its class: paired with itself
    expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(frequencies(strategy), expected, atol=0.04, rtol=0)


def test_half_mixes_same_and_other_classes():
    same = (frequencies("half") * (LABELS[:, None] == LABELS[None])).sum(1)
    torch.testing.assert_close(same, torch.full((6,), 0.5), atol=0.04, rtol=0)


@pytest.mark.parametrize("strategy", ["any", "inter_class", "intra_class", "half"])
def test_a_batch_of_one_is_paired_with_itself(strategy):
    assert sample_pairs(torch.tensor([3]), strategy).tolist() == [0]
