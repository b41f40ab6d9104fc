"""DCAL for fine-grained categories: a classifier on SA and one on GLCA."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_dcal import DCALConfig
from .heads_dcal import DCALForBranches


@dataclass
class DCALImageClassifierOutput(ModelOutput):
    """
    Args:
        loss (`Tensor`): The uncertainty-weighted total over the branches that ran, when labels are given.
        losses (`dict` of `Tensor`): The cross-entropy of each of these branches.
        logits (`Tensor` of shape `(B, classes)`): `softmax(logits)` is the mean of the branches' probabilities.
        sa_logits, glca_logits (`Tensor` of shape `(B, classes)`): Per branch, None if it did not run.
        pwca_logits (`Tensor` of shape `(2P, classes)`): In the order of `pairs.flatten()`; None without pairs.
        embeddings, rollout, local_query_indices: As in `DCALModelOutput`.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    sa_logits: Tensor | None = None
    glca_logits: Tensor | None = None
    pwca_logits: Tensor | None = None
    embeddings: Tensor | None = None
    rollout: Tensor | None = None
    local_query_indices: Tensor | None = None


class DCALForImageClassification(DCALForBranches):
    """DCAL with a linear classifier on SA (shared by PWCA) and one on GLCA, for fine-grained categories."""

    def check_config(self, config: DCALConfig) -> None:
        if config.num_labels < 2:
            raise ValueError(f"A classifier needs at least two classes, got num_labels={config.num_labels}.")

    def add_classifiers(self, branches: list[str], width: int) -> None:
        self.sa_classifier = nn.Linear(width, self.config.num_labels) if "sa" in branches else None
        self.glca_classifier = nn.Linear(width, self.config.num_labels) if "glca" in branches else None

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        pairs: Tensor | None = None,
        pair_noise: bool = False,
        output_rollout: bool = False,
        smoothing: float = 0.0,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> DCALImageClassifierOutput:
        """
        Args:
            pixel_values, pairs, pair_noise, output_rollout: As in `DCALModel`.
            labels (`Tensor` of shape `(B,)`, int64, or `(B, classes)`, probabilities, *optional*):
                No loss counts an image of label -100, which can still distract another.
            smoothing (`float`):
                Share of each label's probability that is spread over all classes. Named without "label", because the
                Trainer takes every argument that has it for a column of the data set.
            criterion (`Callable`, *optional*):
                Takes the place of the cross-entropy: the logits of a branch in float32 and its labels to their loss.
        """
        criterion = criterion or partial(nn.functional.cross_entropy, label_smoothing=smoothing)
        fields = self.run_branches(pixel_values, labels, pairs, pair_noise, output_rollout, criterion)
        logits = [fields[f"{name}_logits"] for name in self.config.inference_branches]
        return DCALImageClassifierOutput(logits=mean_probability_logits(logits), **fields)

    def branch_logits(self, features: dict[str, Tensor], targets: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """SA, which always runs, answers where it is read or trained."""
        classifiers = {"sa": self.sa_classifier, "glca": self.glca_classifier, "pwca": self.sa_classifier}
        reads_sa = "sa" in self.config.inference_branches or (self.training and "sa" in self.config.branches)
        answering = [name for name in features if name != "sa" or reads_sa]
        return {name: classifiers[name](features[name]) for name in answering}


def mean_probability_logits(logits: list[Tensor]) -> Tensor:
    """Logits whose softmax is the mean of the branches' probabilities: the paper's sum, normalised."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([x.float().log_softmax(dim=-1) for x in logits]).logsumexp(dim=0) - math.log(len(logits))


__all__ = ["DCALForImageClassification", "DCALImageClassifierOutput", "mean_probability_logits"]
