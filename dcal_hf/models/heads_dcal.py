"""What the task models share: a classifier per branch, the losses of the branches that ran, their weighted total."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .configuration_dcal import BRANCHES, DCALConfig
from .loss_dcal import branch_labels, counted_branches, make_loss_weights, total_loss
from .modeling_dcal import DCALModel, DCALPreTrainedModel


class DCALForBranches(DCALPreTrainedModel):
    """The base of the task models: [`DCALModel`] and classifiers of its branches; PWCA shares SA's.

    A subclass makes the classifiers, and defines a branch's logits and, where it is not the criterion alone, its loss.
    """

    def __init__(self, config: DCALConfig):
        super().__init__(config)
        self.check_config(config)
        self.dcal = DCALModel(config)
        # `post_init` draws the weights. What constructors draw before it must not depend on the branches: from one
        # seed SA's classifier starts the same with and without GLCA's.
        with torch.random.fork_rng(devices=[]):
            self.add_classifiers(config.classified_branches, config.backbone_config.hidden_size)
        self.loss_weights = make_loss_weights(config.branches, config.initial_log_var)
        self.post_init()

    def check_config(self, config: DCALConfig) -> None:
        """
        Raises:
            ValueError: If the task needs another configuration.
        """
        raise NotImplementedError

    def add_classifiers(self, branches: list[str], width: int) -> None:
        """Makes a classifier for each of these branches, of features of a width."""
        raise NotImplementedError

    def branch_logits(self, features: dict[str, Tensor], targets: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """(B, D) -> (B, classes) for each branch that answers.

        Args:
            features, targets (`dict`): Of the branches that ran; no targets without labels.
        """
        raise NotImplementedError

    def branch_loss(
        self, feature: Tensor, logits: Tensor, target: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The loss of one branch, a scalar."""
        return criterion(logits.float(), target)

    def run_branches(
        self,
        pixel_values: Tensor,
        labels: Tensor | None,
        pairs: Tensor | None,
        pair_noise: bool,
        output_rollout: bool,
        criterion: Callable[[Tensor, Tensor], Tensor],
    ) -> dict[str, Any]:
        """The fields that the outputs of all task models have.

        Args:
            pixel_values, pairs, pair_noise, output_rollout: As in `DCALModel`.
            labels (`Tensor`, *optional*): Of the images.
            criterion (`Callable`): The logits of a branch in float32 and its labels to their loss.
        """
        outputs = self.dcal(pixel_values, pairs, pair_noise, output_rollout, return_dict=True)
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
        }


__all__ = ["DCALForBranches"]
