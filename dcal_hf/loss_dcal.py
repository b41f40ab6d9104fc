"""Losses of DCAL. Paper: section 3.4 (https://huggingface.co/papers/2205.02151)."""

import torch
from torch import Tensor, nn


class UncertaintyWeights(nn.Module):
    """Weighs the branch losses by learnt uncertainty.

    `L = 1/2 sum_b (exp(-w_b) L_b + w_b)` with log-variances `w` (Kendall et al. 2018,
    https://huggingface.co/papers/1705.07115, in the form of FairMOT).

    Args:
        branches (`tuple` of `str`): Names of the losses, in the order of `log_vars`.
        initial_log_var (`float`): Where every `w_b` starts.
    """

    def __init__(self, branches: tuple[str, ...], initial_log_var: float = 0.0):
        super().__init__()
        self.branches = branches
        self.initial_log_var = initial_log_var
        self.log_vars = nn.Parameter(torch.full((len(branches),), float(initial_log_var)))

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """Total over the branches present in `losses`, in float32."""
        present = [self.branches.index(name) for name in losses]
        log_vars = self.log_vars[present].float()
        values = torch.stack([loss.float() for loss in losses.values()])
        return 0.5 * (torch.exp(-log_vars) * values + log_vars).sum()


__all__ = ["UncertaintyWeights"]
