"""The BatchNorm neck of re-identification (Luo et al. 2019, https://huggingface.co/papers/1903.07071)."""

import torch
from torch import Tensor, nn

from .configuration_dcal import DCALConfig


class Neck(nn.BatchNorm1d):
    """BatchNorm without a trained bias: the triplet loss uses the feature before it, the classifier the one after."""

    def __init__(self, width: int):
        super().__init__(width)
        bias = self.bias.detach()
        del self.bias
        self.register_buffer("bias", bias)

    def forward(self, features: Tensor, counted: Tensor | None = None, update_stats: bool = True) -> Tensor:
        """(B, D) -> (B, D).

        Args:
            counted (`Tensor` of shape `(B,)`, bool, *optional*):
                The images that the statistics of a training batch include; without any, they are not updated.
                Defaults to all.
            update_stats (`bool`): Whether to update the running statistics when `counted` is given.
        """
        if not self.training or counted is None:
            return super().forward(features)
        number, values = counted.sum().clamp(min=1), features.float()
        mean = torch.where(counted[:, None], values, 0).sum(dim=0) / number
        variance = torch.where(counted[:, None], values - mean, 0).square().sum(dim=0) / number
        if update_stats:
            unbiased = variance.detach() * number / (number - 1).clamp(min=1)
            self.update_running_stats(mean.detach(), unbiased, counted.any())
        normed = (values - mean) * (variance + self.eps).rsqrt()
        return (normed * self.weight + self.bias).to(features.dtype)

    @torch.no_grad()
    def update_running_stats(self, mean: Tensor, variance: Tensor, updates: Tensor) -> None:
        """Moves the running statistics (D,) towards those of a batch, as `nn.BatchNorm1d` does, if `updates` is true.

        `updates` is a tensor, so that nothing waits for the device.
        """
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(value.to(running.dtype), (self.momentum * updates).to(running.dtype))
        self.num_batches_tracked += updates


def make_necks(config: DCALConfig) -> nn.ModuleDict:
    """Creates a neck for each branch that has a classifier; PWCA shares SA's."""
    width = config.backbone_config.hidden_size
    return nn.ModuleDict({name: Neck(width) for name in config.classified_branches})


def join_embeddings(features: dict[str, Tensor], necks: nn.ModuleDict | None, config: DCALConfig) -> Tensor:
    """Concatenates the branches' features to `[SA ; GLCA]`, (B, branches * D), L2-normalised if configured.

    With `neck_feature="after"`, the features pass through `necks`, if given.
    """
    if config.neck_feature == "after" and necks is not None:
        features = {name: necks[name](feature) for name, feature in features.items()}
    embeddings = torch.cat([features[name] for name in config.inference_branches], dim=-1)
    return nn.functional.normalize(embeddings, dim=-1) if config.normalize_embeddings else embeddings


__all__ = ["Neck", "join_embeddings", "make_necks"]
