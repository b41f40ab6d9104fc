"""DCAL for fine-grained image classification: a classifier on SA and one on GLCA."""

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
        loss (`Tensor`): Uncertainty-weighted total loss over the branches that ran, if labels are given.
        losses (`dict` of `Tensor`): Cross-entropy of each of these branches.
        logits (`Tensor` of shape `(B, classes)`): `softmax(logits)` is the mean of the branches' probabilities.
        sa_logits, glca_logits (`Tensor` of shape `(B, classes)`): Logits of the branch; None if it did not run.
        pwca_logits (`Tensor` of shape `(2P, classes)`): In the order of `pairs.flatten()`; None without pairs.
        embeddings, rollout, local_query_indices, hidden_states, attentions: As in `DCALModelOutput`.
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
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class DCALForImageClassification(DCALForBranches):
    """DCAL with a linear classifier on SA (shared by PWCA) and one on GLCA, for fine-grained image classification."""

    def check_config(self, config: DCALConfig) -> None:
        if config.num_labels < 2:
            raise ValueError(f"A classifier needs at least two classes, got num_labels={config.num_labels}.")
        if config.problem_type not in (None, "single_label_classification"):
            raise ValueError(f"problem_type='{config.problem_type}' is not supported: each image has a single class.")

    def add_classifiers(self, branches: list[str]) -> None:
        self.sa_classifier = self.make_classifier() if "sa" in branches else None
        self.glca_classifier = self.make_classifier() if "glca" in branches else None

    def make_classifier(self) -> nn.Linear:
        return nn.Linear(self.config.backbone_config.hidden_size, self.config.num_labels)

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
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> DCALImageClassifierOutput:
        """
        Args:
            pixel_values, pairs, pair_noise, output_rollout, output_hidden_states, output_attentions: As in
                `DCALModel`.
            labels (`Tensor` of shape `(B,)`, int64, or `(B, classes)`, probabilities, *optional*):
                The losses ignore an image of label -100, which can still be a distractor.
            smoothing (`float`):
                Label smoothing. The name omits "label" because Trainer treats every argument whose name has it as a
                column of the data set.
            criterion (`Callable`, *optional*):
                Replaces the cross-entropy: computes the loss of a branch from its logits in float32 and its labels.
        """
        criterion = criterion or partial(nn.functional.cross_entropy, label_smoothing=smoothing)
        asked = (output_rollout, output_hidden_states, output_attentions)
        outputs = self.dcal(pixel_values, pairs, pair_noise, *asked, return_dict=True)
        fields = self.score_branches(outputs, labels, pairs, criterion)
        logits = [fields[f"{name}_logits"] for name in self.config.inference_branches]
        return DCALImageClassifierOutput(logits=mean_probability_logits(logits), **fields)

    def branch_logits(self, features: dict[str, Tensor], targets: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Classifies each branch that ran; SA, which always runs, only if it is trained or used at inference."""
        classifiers = {"sa": self.sa_classifier, "glca": self.glca_classifier, "pwca": self.sa_classifier}
        reads_sa = "sa" in self.config.inference_branches or (self.training and "sa" in self.config.branches)
        answering = [name for name in features if name != "sa" or reads_sa]
        return {name: classifiers[name](features[name]) for name in answering}


def mean_probability_logits(logits: list[Tensor]) -> Tensor:
    """Logits whose softmax is the mean of the branches' probabilities: the sum of the paper, normalised."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([x.float().log_softmax(dim=-1) for x in logits]).logsumexp(dim=0) - math.log(len(logits))


__all__ = ["DCALForImageClassification", "DCALImageClassifierOutput", "mean_probability_logits"]
