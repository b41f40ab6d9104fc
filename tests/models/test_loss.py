import math

import pytest
import torch

from dcal_hf import DCALForImageClassification
from dcal_hf.models.loss_dcal import UncertaintyWeights, counted_branches, make_loss_weights, total_loss


def test_total_is_the_papers_formula():
    weights = UncertaintyWeights(("sa", "glca", "pwca"))
    weights.log_vars.data = torch.tensor([0.3, -0.5, 1.0])
    losses = {"sa": 2.0, "glca": 3.0, "pwca": 0.7}
    total = weights({name: torch.tensor(value) for name, value in losses.items()})
    expected = 0.5 * sum(math.exp(-w) * v + w for w, v in zip([0.3, -0.5, 1.0], losses.values()))
    assert total.item() == pytest.approx(expected)


def test_the_total_includes_only_the_branches_that_ran():
    weights = UncertaintyWeights(("sa", "glca", "pwca"))
    weights.log_vars.data = torch.tensor([0.3, -0.5, 1.0])
    total = weights({"pwca": torch.tensor(0.7), "sa": torch.tensor(2.0)})
    assert total.item() == pytest.approx(0.5 * (math.exp(-1) * 0.7 + 1 + math.exp(-0.3) * 2 + 0.3))


def test_log_variance_converges_to_the_log_of_the_loss():
    weights = UncertaintyWeights(("sa",), initial_log_var=-1.85)
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        weights({"sa": torch.tensor(3.0)}).backward()
        optimizer.step()
    assert weights.log_vars.item() == pytest.approx(math.log(3), abs=1e-4)


def test_a_single_branch_is_not_weighted():
    assert make_loss_weights(("glca",), 0.0) is None
    assert total_loss({"glca": torch.tensor(3.0)}, None).item() == 3
    assert total_loss({"glca": torch.tensor(3.0)}, make_loss_weights(("sa", "glca"), 0.0)).item() == 1.5


def test_an_untrained_branch_counts_only_if_no_trained_one_ran():
    trained = ("glca", "pwca")
    assert counted_branches(["sa", "glca", "pwca"], trained) == ["glca", "pwca"]
    assert counted_branches(["sa"], trained) == ["sa"]
    assert total_loss({"sa": torch.tensor(3.0)}, make_loss_weights(trained, 1.0)).item() == 3


def test_equal_weights_are_half_the_sum_without_parameters():
    weights = make_loss_weights(("sa", "glca", "pwca"), 0.0, "equal")
    losses = {"pwca": torch.tensor(0.7), "sa": torch.tensor(2.0)}
    assert total_loss(losses, weights).item() == pytest.approx((0.7 + 2) / 2)
    assert total_loss(losses, weights) == total_loss(losses, make_loss_weights(("sa", "glca", "pwca"), 0.0))
    assert not list(weights.parameters()) and not weights.state_dict()
    assert make_loss_weights(("sa",), 0.0, "equal") is None


def test_loss_weighting_can_be_changed_when_loading(vit_config, tmp_path):
    """A checkpoint with equal weights has no log-variances; learned weighting initialises them."""
    model = DCALForImageClassification.from_backbone(vit_config, num_labels=3, loss_weighting="equal")
    names = {name for name, _ in model.named_parameters()}
    learned = DCALForImageClassification.from_backbone(vit_config, num_labels=3)
    assert {name for name, _ in learned.named_parameters()} - names == {"loss_weights.log_vars"}
    model.save_pretrained(tmp_path)
    assert DCALForImageClassification.from_pretrained(tmp_path).config.loss_weighting == "equal"
    again = DCALForImageClassification.from_pretrained(tmp_path, loss_weighting="uncertainty")
    assert again.loss_weights.log_vars.tolist() == [0, 0, 0]
    again.save_pretrained(tmp_path)
    equal = DCALForImageClassification.from_pretrained(tmp_path, loss_weighting="equal")
    assert {name for name, _ in equal.named_parameters()} == names
