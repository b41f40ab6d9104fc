"""DCAL for fine-grained categories: a classifier on SA and one on GLCA."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_dcal import DCALConfig
from .loss_dcal import branch_labels, counted_branches, make_loss_weights, total_loss
from .modeling_dcal import DCALModel, DCALPreTrainedModel


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


class DCALForImageClassification(DCALPreTrainedModel):
    """DCAL with a linear classifier on SA (shared by PWCA) and one on GLCA, for fine-grained categories."""

    def __init__(self, config: DCALConfig):
        super().__init__(config)
        if config.num_labels < 2:
            raise ValueError(f"A classifier needs at least two classes, got num_labels={config.num_labels}.")
        self.dcal = DCALModel(config)
        width = config.backbone_config.hidden_size
        has_sa_head = config.branches != ("glca",)
        # `post_init` draws the weights. What constructors draw before it must not depend on the branches: from one
        # seed SA's classifier starts the same with and without GLCA's.
        with torch.random.fork_rng(devices=[]):
            self.sa_classifier = nn.Linear(width, config.num_labels) if has_sa_head else None
            self.glca_classifier = nn.Linear(width, config.num_labels) if "glca" in config.branches else None
        self.loss_weights = make_loss_weights(config.branches, config.initial_log_var)
        self.post_init()

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
        outputs = self.dcal(pixel_values, pairs, pair_noise, output_rollout, return_dict=True)
        logits = {}
        if "sa" in self.config.inference_branches or (self.training and "sa" in self.config.branches):
            logits["sa"] = self.sa_classifier(outputs.sa_embedding)
        if outputs.glca_embedding is not None:
            logits["glca"] = self.glca_classifier(outputs.glca_embedding)
        if outputs.pwca_embedding is not None:
            logits["pwca"] = self.sa_classifier(outputs.pwca_embedding)
        loss, losses = None, None
        if labels is not None:
            targets = branch_labels(labels, pairs)
            losses = {
                name: criterion(logits[name].float(), targets[name])
                for name in counted_branches(logits, self.config.branches)
            }
            loss = total_loss(losses, self.loss_weights)
        return DCALImageClassifierOutput(
            loss=loss,
            losses=losses,
            logits=mean_probability_logits([logits[name] for name in self.config.inference_branches]),
            sa_logits=logits.get("sa"),
            glca_logits=logits.get("glca"),
            pwca_logits=logits.get("pwca"),
            embeddings=outputs.embeddings,
            rollout=outputs.rollout,
            local_query_indices=outputs.local_query_indices,
        )


def mean_probability_logits(logits: list[Tensor]) -> Tensor:
    """Logits whose softmax is the mean of the branches' probabilities: the paper's sum, normalised."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([x.float().log_softmax(dim=-1) for x in logits]).logsumexp(dim=0) - math.log(len(logits))


__all__ = ["DCALForImageClassification", "DCALImageClassifierOutput", "mean_probability_logits"]
