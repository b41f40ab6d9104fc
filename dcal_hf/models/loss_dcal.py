"""Losses of DCAL (https://huggingface.co/papers/2205.02151, section 4.1)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


# Label of an image that the losses ignore, as in `torch.nn.functional.cross_entropy`.
IGNORED = -100


class UncertaintyWeights(nn.Module):
    """Weights the branch losses by learned uncertainty.

    `L = 1/2 sum_b (exp(-w_b) L_b + w_b)` with log-variances `w` (Kendall et al. 2018,
    https://huggingface.co/papers/1705.07115, in the form of FairMOT).

    Args:
        branches (`tuple` of `str`): Names of the losses, in the order of `log_vars`.
        initial_log_var (`float`): Initial value of each `w_b`.
    """

    def __init__(self, branches: tuple[str, ...], initial_log_var: float = 0.0):
        super().__init__()
        self.branches = branches
        self.initial_log_var = initial_log_var
        self.log_vars = nn.Parameter(torch.full((len(branches),), float(initial_log_var)))

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """Weighted total of the branches in `losses`, in float32."""
        present = [self.branches.index(name) for name in losses]
        log_vars = self.log_vars[present].float()
        values = torch.stack([loss.float() for loss in losses.values()])
        return 0.5 * (torch.exp(-log_vars) * values + log_vars).sum()


class EqualWeights(nn.Module):
    """Weights the branch losses equally and learns nothing: `L = 1/2 sum_b L_b`.

    This is [`UncertaintyWeights`] with log-variances that stay 0, so that with the same learning rate and gradient
    clipping the two only differ in what is learned.

    Args:
        branches (`tuple` of `str`): Names of the losses.
    """

    def __init__(self, branches: tuple[str, ...]):
        super().__init__()
        self.branches = branches

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """Half the sum of the losses, in float32."""
        return 0.5 * torch.stack([loss.float() for loss in losses.values()]).sum()


def counted_branches(ran: Iterable[str], trained: tuple[str, ...]) -> list[str]:
    """The branches whose losses count: the trained branches that ran, or all that ran if none of them is trained (SA
    at inference after training PWCA alone)."""
    ran = list(ran)
    return [name for name in ran if name in trained] or ran


def branch_labels(labels: Tensor, pairs: Tensor | None) -> dict[str, Tensor]:
    """Labels of each branch. PWCA's are `labels[pairs.flatten()]`, in the order of its images."""
    paired = labels
    if pairs is not None:
        paired = labels[pairs.flatten().to(labels.device, non_blocking=True)]
    return {"sa": labels, "glca": labels, "pwca": paired}


def total_loss(losses: dict[str, Tensor], weights: UncertaintyWeights | EqualWeights | None) -> Tensor:
    """The weighted total of the losses, or their sum if a loss has no weight (a single branch has none)."""
    if weights is None or not set(losses) <= set(weights.branches):
        return sum(losses.values())
    return weights(losses)


def make_loss_weights(
    branches: tuple[str, ...], initial_log_var: float, weighting: str = "uncertainty"
) -> UncertaintyWeights | EqualWeights | None:
    """Creates the weights of the trained branches, `"uncertainty"` or `"equal"`; a single branch needs none."""
    if len(branches) == 1:
        return None
    return EqualWeights(branches) if weighting == "equal" else UncertaintyWeights(branches, initial_log_var)


def batch_hard_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """Batch-hard triplet loss with a soft margin: `mean_a log(1 + exp(max_p d(a, p) - min_n d(a, n)))`.

    Hermans et al. 2017 (https://huggingface.co/papers/1703.07737), Euclidean distance. Always in float32: half
    precision loses the differences between similar distances. Anchors without a positive or without a negative in the
    batch do not count.

    Args:
        features (`Tensor` of shape `(B, D)`)
        labels (`Tensor` of shape `(B,)`): Identities; an image of label -100 is not an anchor, positive or negative.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    counts = labels != IGNORED
    same = labels[:, None] == labels[None, :]
    positive = same & counts & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    negative = ~same & counts
    hardest_positive = distances.masked_fill(~positive, 0.0).amax(dim=1)
    hardest_negative = distances.masked_fill(~negative, torch.inf).amin(dim=1)
    is_anchor = counts & positive.any(dim=1) & negative.any(dim=1)
    # Non-anchors are masked before the softplus, so that no infinity reaches the gradient.
    margin = torch.where(is_anchor, hardest_positive - hardest_negative, 0.0)
    return (nn.functional.softplus(margin) * is_anchor).sum() / is_anchor.sum().clamp(min=1)


__all__ = [
    "EqualWeights",
    "IGNORED",
    "UncertaintyWeights",
    "batch_hard_triplet",
    "branch_labels",
    "counted_branches",
    "make_loss_weights",
    "total_loss",
]
