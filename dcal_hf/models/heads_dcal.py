"""Base class of the task models: a classifier per branch, a loss per branch and the weighted total loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_dcal import DCALConfig
from .loss_dcal import branch_labels, counted_branches, make_loss_weights, total_loss
from .modeling_dcal import DCALModel, DCALPreTrainedModel
from .outputs_dcal import DCALModelOutput
from .validation_dcal import BRANCHES


class DCALForBranches(DCALPreTrainedModel):
    """Base class of the task models: a [`DCALModel`] with a classifier per branch; PWCA shares SA's.

    A subclass defines the classifiers, the logits and, if it is not just the criterion, the loss of a branch.
    """

    def __init__(self, config: DCALConfig):
        super().__init__(config)
        self.check_config(config)
        self.dcal = DCALModel(config)
        # `post_init` initialises the weights. Random numbers that constructors draw before must not depend on the
        # branches: for a given seed, SA's classifier is initialised the same with and without GLCA's.
        with torch.random.fork_rng(devices=[]):
            self.add_classifiers(config.classified_branches)
        self.loss_weights = make_loss_weights(config.branches, config.initial_log_var, config.loss_weighting)
        self.post_init()

    def check_config(self, config: DCALConfig) -> None:
        """
        Raises:
            ValueError: If the configuration does not suit the task.
        """
        raise NotImplementedError

    def add_classifiers(self, branches: list[str]) -> None:
        """Adds a classifier for each of the branches."""
        raise NotImplementedError

    def make_classifier(self) -> nn.Linear:
        """Creates a classifier of the encoder's features, with the same number of rows for each class, in order."""
        raise NotImplementedError

    def branch_logits(self, features: dict[str, Tensor], targets: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Computes the logits of each classified branch, (B, D) -> (B, classes).

        Args:
            features, targets (`dict`): Features and labels of the branches that ran; no targets without labels.
        """
        raise NotImplementedError

    def branch_loss(
        self, feature: Tensor, logits: Tensor, target: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Computes the loss of one branch, a scalar."""
        return criterion(logits.float(), target)

    def score_branches(
        self,
        outputs: DCALModelOutput,
        labels: Tensor | None,
        pairs: Tensor | None,
        criterion: Callable[[Tensor, Tensor], Tensor],
    ) -> dict[str, Any]:
        """Computes logits and losses of the branches that ran; returns the output fields that all task models share.

        Args:
            outputs (`DCALModelOutput`): The output of the base model.
            labels (`Tensor`, *optional*): Labels of the images.
            pairs (`Tensor` of shape `(P, 2)`, *optional*): Those of the base model.
            criterion (`Callable`): Computes the loss of a branch from its logits in float32 and its labels.
        """
        features = {name: getattr(outputs, f"{name}_embedding") for name in BRANCHES}
        features = {name: feature for name, feature in features.items() if feature is not None}
        targets = None if labels is None else branch_labels(labels, pairs)
        logits = self.branch_logits(features, targets)
        loss, losses = None, None
        if targets is not None:
            losses = {
                name: self.branch_loss(features[name], logits[name], targets[name], criterion)
                for name in counted_branches(logits, self.config.branches)
            }
            loss = total_loss(losses, self.loss_weights)
        return {
            "loss": loss,
            "losses": losses,
            **{f"{name}_logits": logits.get(name) for name in BRANCHES},
            "embeddings": outputs.embeddings,
            "rollout": outputs.rollout,
            "local_query_indices": outputs.local_query_indices,
            "hidden_states": outputs.hidden_states,
            "attentions": outputs.attentions,
        }


__all__ = ["DCALForBranches"]
