import math

import pytest
import torch

from dcal_hf.loss_dcal import UncertaintyWeights


def test_total_is_the_papers_formula():
    weights = UncertaintyWeights(("sa", "glca", "pwca"))
    weights.log_vars.data = torch.tensor([0.3, -0.5, 1.0])
    losses = {"sa": 2.0, "glca": 3.0, "pwca": 0.7}
    total = weights({name: torch.tensor(value) for name, value in losses.items()})
    expected = 0.5 * sum(math.exp(-w) * v + w for w, v in zip([0.3, -0.5, 1.0], losses.values()))
    assert total.item() == pytest.approx(expected)


def test_only_branches_that_ran_count_whatever_their_order():
    weights = UncertaintyWeights(("sa", "glca", "pwca"))
    weights.log_vars.data = torch.tensor([0.3, -0.5, 1.0])
    total = weights({"pwca": torch.tensor(0.7), "sa": torch.tensor(2.0)})
    assert total.item() == pytest.approx(0.5 * (math.exp(-1) * 0.7 + 1 + math.exp(-0.3) * 2 + 0.3))


def test_log_variance_settles_at_the_log_of_its_loss():
    weights = UncertaintyWeights(("sa",), initial_log_var=-1.85)
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        weights({"sa": torch.tensor(3.0)}).backward()
        optimizer.step()
    assert weights.log_vars.item() == pytest.approx(math.log(3), abs=1e-4)
