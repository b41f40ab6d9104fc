"""DCAL for re-identification: embeddings that distinguish individuals."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .arcface_dcal import SubCenterClassifier, add_angular_margin
from .configuration_dcal import DCALConfig
from .heads_dcal import DCALForBranches
from .loss_dcal import IGNORED, batch_hard_triplet, counted_branches


# Initial standard deviation of the identity classifiers' weights, as in TransReID's baseline.
CLASSIFIER_STD = 0.001
# That of ArcFace's centres, as in insightface. Only their directions count: shorter ones turn faster.
CENTER_STD = 0.01


@dataclass
class DCALReIDOutput(ModelOutput):
    """
    Args:
        loss (`Tensor`): Uncertainty-weighted total loss over the branches that ran, if labels are given.
        losses (`dict` of `Tensor`): Identity loss plus triplet loss of each of these branches.
        embeddings (`Tensor` of shape `(B, branches * D)`): Embeddings for retrieval; the same as `AutoModel`'s.
        sa_logits, glca_logits (`Tensor` of shape `(B, identities)`), pwca_logits (`Tensor` of shape
            `(2P, identities)`): Logits of the training identities, without ArcFace's margin; None if the branch did
            not run.
        rollout, local_query_indices, hidden_states, attentions: As in `DCALModelOutput`.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    embeddings: Tensor | None = None
    sa_logits: Tensor | None = None
    glca_logits: Tensor | None = None
    pwca_logits: Tensor | None = None
    rollout: Tensor | None = None
    local_query_indices: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class DCALForReID(DCALForBranches):
    """DCAL with a BatchNorm neck and a classifier without bias on SA and on GLCA; PWCA shares SA's.

    The classifiers are saved and resumed with the model, whether linear or ArcFace's sub-centres, and unused at
    inference.
    """

    config_defaults = {"neck": True, "normalize_embeddings": True, "local_query_ratio": 0.3}

    def check_config(self, config: DCALConfig) -> None:
        if config.num_labels < 2:
            raise ValueError(
                f"Re-identification needs at least two training identities, got num_labels={config.num_labels}."
            )
        if not config.neck:
            raise ValueError("DCALForReID needs neck=True in its configuration; from_backbone sets it.")

    def add_classifiers(self, branches: list[str]) -> None:
        self.classifiers = nn.ModuleDict({name: self.make_classifier() for name in branches})

    def make_classifier(self) -> nn.Linear:
        config = self.config
        width = config.backbone_config.hidden_size
        if self.has_centers:
            return SubCenterClassifier(width, config.num_labels, config.arcface_subcenters, config.arcface_scale)
        return nn.Linear(width, config.num_labels, bias=False)

    @property
    def has_centers(self) -> bool:
        """Whether the classifiers are ArcFace's sub-centres."""
        return self.config.identity_loss == "arcface"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module in self.classifiers.values():
            init.normal_(module.weight, std=CENTER_STD if self.has_centers else CLASSIFIER_STD)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        pairs: Tensor | None = None,
        pair_noise: bool = False,
        output_rollout: bool = False,
        criterion: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> DCALReIDOutput:
        """
        Args:
            pixel_values, pairs, pair_noise, output_rollout, output_hidden_states, output_attentions: As in
                `DCALModel`.
            labels (`Tensor` of shape `(B,)`, int64, *optional*):
                Training identities, from 0. The losses and the necks' statistics ignore an image of label -100.
            criterion (`Callable`):
                Identity loss, added to the triplet loss: takes a branch's logits in float32 and its labels.
        """
        asked = (output_rollout, output_hidden_states, output_attentions)
        outputs = self.dcal(pixel_values, pairs, pair_noise, *asked, return_dict=True)
        fields = self.score_branches(outputs, labels, pairs, criterion)
        return DCALReIDOutput(**fields)

    def branch_logits(self, features: dict[str, Tensor], targets: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Logits of the training identities; only the loss uses them."""
        if targets is None:
            return {}
        counted = counted_branches(features, self.config.branches)
        return {name: self.identity_logits(name, features[name], targets[name]) for name in counted}

    def branch_loss(
        self, feature: Tensor, logits: Tensor, target: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        if self.has_centers:
            logits = add_angular_margin(logits, target, self.config.arcface_margin, self.config.arcface_scale)
        return super().branch_loss(feature, logits, target, criterion) + batch_hard_triplet(feature, target)

    def identity_logits(self, branch: str, feature: Tensor, labels: Tensor) -> Tensor:
        """Classifies the feature after the neck, (B, D) -> (B, identities)."""
        shared = "sa" if branch == "pwca" else branch
        # PWCA does not run at inference, so it must not update the running statistics.
        feature = self.dcal.necks[shared](feature, counted=labels != IGNORED, update_stats=branch == shared)
        return self.classifiers[shared](feature)


__all__ = ["DCALForReID", "DCALReIDOutput"]
