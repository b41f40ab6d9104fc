"""Loss helpers of the trainers: custom losses, probability labels with distractors, and logged log-variances."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.modeling_outputs import ImageClassifierOutput

from ..models.loss_dcal import IGNORED, UncertaintyWeights


def custom_loss(function: Callable[..., Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    """Applies a `compute_loss_func` of `transformers.Trainer` to the logits of one branch.

    `num_items_in_batch` is None, so that the function returns the mean: the Trainer's number counts all accumulated
    batches, but only one branch.

    Raises:
        ValueError: If the function does not return a scalar.
    """
    loss = function(ImageClassifierOutput(logits=logits), labels, num_items_in_batch=None)
    if loss.ndim > 0:
        raise ValueError(
            "compute_loss_func must return the mean loss of the images, a scalar, but its result has the shape "
            f"{tuple(loss.shape)}."
        )
    return loss


def log_variances(model: nn.Module) -> dict[str, float]:
    """The log-variances that weight the branch losses, as `log_var_sa`, ...; empty if none are learned.

    Under FSDP all processes must call it.
    """
    weights = model.loss_weights
    if not isinstance(weights, UncertaintyWeights):
        return {}
    log_vars = weights.log_vars.detach()
    log_vars = log_vars.full_tensor() if isinstance(log_vars, DTensor) else log_vars
    return {f"log_var_{name}": round(value, 4) for name, value in zip(weights.branches, log_vars.tolist())}


def with_counted_rows(
    criterion: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy, smoothing: float = 0.0, **inputs: Any
) -> dict[str, Any]:
    """Adds a criterion that ignores distractors if labels are probabilities, which torch's losses cannot.

    Finding the rows synchronizes with the device, so this is for batches with distractors only.
    """
    if smoothing > 0:
        criterion = partial(criterion, label_smoothing=smoothing)

    def counted(logits: Tensor, labels: Tensor) -> Tensor:
        rows = labels[:, 0] != IGNORED
        return criterion(logits[rows], labels[rows])

    return {**inputs, "criterion": counted}


__all__ = ["custom_loss", "log_variances", "with_counted_rows"]
