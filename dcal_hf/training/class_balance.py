"""Losses for classes of unequal size: class weights and logit adjustment."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.columns import column


BALANCED = "balanced"


@dataclass
class BalancedCrossEntropy:
    """Cross-entropy with class weights and adjusted logits; as in torch, a weighted mean over the images.

    Args:
        weight (`Tensor` of shape `(classes,)`, *optional*): Weight of each class.
        shift (`Tensor` of shape `(classes,)`, *optional*): Added to the logits, see [`logit_shift`].
        smoothing (`float`): Label smoothing.
    """

    weight: Tensor | None
    shift: Tensor | None
    smoothing: float

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, classes) and (B,) or (B, classes) -> a scalar."""
        logits = logits if self.shift is None else logits + self.shift
        return nn.functional.cross_entropy(logits, labels, weight=self.weight, label_smoothing=self.smoothing)


def count_classes(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of images per class, (N,) -> (classes,), at least 1 because its logarithm is used."""
    return np.bincount(labels[labels >= 0], minlength=num_classes).clip(min=1)


def balanced_weights(counts: np.ndarray) -> Tensor:
    """`N / (C n_c)`, as scikit-learn's `class_weight="balanced"`: every class has the same share of the loss."""
    return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)


def named_weights(weights: Mapping[str, float], names: Sequence[str]) -> Tensor:
    """Weights by the name of the class, in the order of `names`; 1 for the others.

    Raises:
        ValueError: If no class has such a name.
    """
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise ValueError(f"class_weights names '{unknown[0]}', which is no class: the classes are {', '.join(names)}.")
    return torch.tensor([float(weights.get(name, 1.0)) for name in names])


def logit_shift(counts: np.ndarray, tau: float) -> Tensor:
    """`tau log p_c`, with p_c the share of class c in the training images.

    Menon et al. 2021 (https://huggingface.co/papers/2007.07314, equation 10): added to the logits in training only, it
    makes the unshifted logits those of the balanced error.
    """
    return torch.tensor(tau * np.log(counts / counts.sum()), dtype=torch.float32)


def read_class_weights(class_weights: Any) -> Any:
    """Reads weights that are given as JSON, on the command line.

    Raises:
        ValueError: If it is no JSON.
    """
    if not (isinstance(class_weights, str) and class_weights.startswith("{")):
        return class_weights
    try:
        return json.loads(class_weights)
    except ValueError as error:
        raise ValueError(
            f"class_weights={class_weights!r} is no JSON ({error}): give weights by the names of classes, such as "
            '{"robin": 2.0}.'
        ) from error


def check_class_balance(class_weights: Any, tau: float) -> None:
    """
    Raises:
        ValueError: If `class_weights` is neither None, "balanced" nor a mapping to positive numbers, or `tau` is below
            0.
    """
    if isinstance(class_weights, Mapping):
        for name, weight in class_weights.items():
            if not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                raise ValueError(f"class_weights gives '{name}' the weight {weight!r}: it must be a number above 0.")
    elif class_weights not in (None, BALANCED):
        raise ValueError(
            f"class_weights={class_weights!r} must be '{BALANCED}' or weights by the names of classes, such as "
            '{"robin": 2.0}.'
        )
    if not 0 <= tau < float("inf"):
        raise ValueError(f"logit_adjustment={tau} must be at least 0; 1 is the usual value, 0 disables it.")


def read_labels(dataset: Any, reader: str) -> np.ndarray:
    """The class of each image of a data set (N,), read without the transform.

    Args:
        reader (`str`): The option or trainer that needs the classes, for the message.

    Raises:
        ValueError: If the data set has no label column.
    """
    columns = getattr(dataset, "column_names", [])
    names = [name for name in ("label", "labels") if name in columns]
    if not names:
        raise ValueError(
            f"{reader} needs the class of every training image: give train_dataset as a datasets.Dataset with a "
            "column label."
        )
    return np.asarray(column(dataset, names[0]))


def make_balanced_loss(
    class_weights: Mapping[str, float] | str | None,
    tau: float,
    smoothing: float,
    names: Sequence[str],
    dataset: Any,
    device: torch.device,
) -> BalancedCrossEntropy:
    """Creates the loss for `class_weights` and `logit_adjustment` (`tau`).

    Args:
        names (sequence of `str`): The classes of the model.
        dataset: The training images, whose classes are counted if needed.

    Raises:
        ValueError: For an unknown class, or images without classes to count.
    """
    weight = named_weights(class_weights, names) if isinstance(class_weights, Mapping) else None
    shift = None
    if class_weights == BALANCED or tau > 0:
        option = f"class_weights='{BALANCED}'" if class_weights == BALANCED else f"logit_adjustment={tau}"
        counts = count_classes(read_labels(dataset, option), len(names))
        weight = balanced_weights(counts) if class_weights == BALANCED else weight
        shift = logit_shift(counts, tau) if tau > 0 else None
    weight, shift = (None if values is None else values.to(device) for values in (weight, shift))
    return BalancedCrossEntropy(weight, shift, smoothing)


__all__ = [
    "BalancedCrossEntropy",
    "balanced_weights",
    "check_class_balance",
    "count_classes",
    "logit_shift",
    "make_balanced_loss",
    "named_weights",
    "read_class_weights",
    "read_labels",
]
