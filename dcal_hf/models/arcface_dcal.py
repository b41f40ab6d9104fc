"""Sub-centre ArcFace (Deng et al. 2020, Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces).

https://www.ecva.net/papers/eccv_2020/papers_ECCV/papers/123560715.pdf
"""

import math

import torch
from torch import Tensor, nn

from .loss_dcal import IGNORED


class SubCenterClassifier(nn.Linear):
    """Classifies by the angle between a feature and the nearest of a class's K sub-centres.

    Always in float32: half precision loses the differences between small angles.

    Args:
        width (`int`): Width of the features.
        num_classes (`int`): C.
        num_subcenters (`int`): K. The weight has shape (C * K, D), the rows of a class are adjacent.
        scale (`float`): Factor of the cosines.
    """

    def __init__(self, width: int, num_classes: int, num_subcenters: int, scale: float):
        super().__init__(width, num_classes * num_subcenters, bias=False)
        self.num_subcenters = num_subcenters
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """`scale * max_k cos(x, W_ck)` in float32, without a margin: (B, D) -> (B, C)."""
        with torch.autocast(features.device.type, enabled=False):
            features, centers = (nn.functional.normalize(x.float(), dim=1) for x in (features, self.weight))
            cosines = nn.functional.linear(features, centers)
        return self.scale * cosines.unflatten(1, (-1, self.num_subcenters)).amax(dim=2)


def add_angular_margin(logits: Tensor, labels: Tensor, margin: float, scale: float) -> Tensor:
    """Replaces each image's `s cos(t)` of its own class by `s cos(t + m)`, (B, C) -> (B, C).

    Beyond `t = pi - m`, where `cos(t + m)` would increase again, it is `s (cos(t) - m sin(m))`, as in the authors'
    code (https://github.com/deepinsight/insightface).

    Args:
        logits (`Tensor` of shape `(B, C)`): Output of [`SubCenterClassifier`], in float32.
        labels (`Tensor` of shape `(B,)`, int64): Images of label -100 have no margin.
        margin (`float`): m, in radians.
        scale (`float`): s, that of the classifier.
    """
    own = labels.clamp(min=0)[:, None]
    plain = logits.gather(1, own)
    cosine = plain / scale
    # The slope of the root is infinite at 0.
    sine = (1 - cosine.square()).clamp(min=torch.finfo(cosine.dtype).eps).sqrt()
    moved = torch.where(
        cosine > -math.cos(margin),
        cosine * math.cos(margin) - sine * math.sin(margin),
        cosine - margin * math.sin(margin),
    )
    return logits.scatter(1, own, torch.where((labels != IGNORED)[:, None], scale * moved, plain))


__all__ = ["SubCenterClassifier", "add_angular_margin"]
