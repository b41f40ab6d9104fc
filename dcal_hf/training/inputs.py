"""Checks of what a trainer is given."""

from collections.abc import Sequence, Sized
from typing import Any

from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import TrainingArguments


def check_inputs(
    trainer: str,
    args_class: type[TrainingArguments],
    model: nn.Module | None,
    args: Any,
    train_dataset: Dataset | None,
) -> None:
    """Checks the arguments of a trainer.

    Args:
        trainer (`str`): Name of the trainer's class, for messages.
        args_class: The class of its training arguments.
        model, args, train_dataset: As given to the trainer.

    Raises:
        TypeError: If the arguments or the model are of another class, or the training data is a stream.
        ValueError: If one process has several GPUs.
    """
    if not isinstance(args, args_class):
        raise TypeError(
            f"{trainer} takes {args_class.__name__}, not {type(args).__name__}: it has the same fields and those of "
            "DCAL."
        )
    # Not `isinstance`, so that a model of another library around a DCAL model is accepted.
    if model is not None and not hasattr(model, "loss_weights"):
        raise TypeError(
            f"{trainer} trains DCALForImageClassification or DCALForReID, not {type(model).__name__}: build one with "
            "from_backbone, from the name, folder or configuration of an encoder."
        )
    # A stream may have a length.
    is_stream = isinstance(train_dataset, IterableDataset) or not isinstance(train_dataset, Sized)
    if train_dataset is not None and is_stream:
        raise TypeError(
            f"{trainer} orders the images of the full training set, but {type(train_dataset).__name__} is a stream: "
            "pass a data set with a length and indices, such as datasets.Dataset."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process would split pairs of images: start one process per GPU with "
            "`accelerate launch`, or show this one a single GPU (CUDA_VISIBLE_DEVICES=0)."
        )


def logged_metrics(compute_metrics: Any, eval_dataset: Any) -> list[str] | None:
    """The metrics of an evaluation of one data set, or of a dictionary of them.

    Args:
        compute_metrics: That of the trainer; names its metrics as `metric_names`, or None is returned.
    """
    names = getattr(compute_metrics, "metric_names", None)
    if names is None or not isinstance(eval_dataset, dict):
        return names and ["loss", *names]
    return [f"{name}_{metric}" for name in eval_dataset for metric in ("loss", *names)]


def check_best_metric(args: TrainingArguments, names: Sequence[str] | None) -> None:
    """Checks before training what the Trainer would only find in its first evaluation.

    Args:
        names (sequence of `str`, *optional*): The metrics of an evaluation, without the prefix `eval_`, if known.

    Raises:
        ValueError: If `metric_for_best_model` is none of them.
    """
    name = args.metric_for_best_model
    if names is None or name is None or args.eval_strategy == "no":
        return
    if name.removeprefix("eval_") not in names:
        raise ValueError(f"metric_for_best_model='{name}' is no metric of the evaluation: it has {', '.join(names)}.")


def check_distractors(model: nn.Module, pair_sampling: str) -> None:
    """Checks whether images of another data set can be the distractors.

    Raises:
        ValueError: If the model has no PWCA branch, or `pair_sampling` chooses other distractors.
    """
    if not model.config.uses_pwca:
        raise ValueError(
            "Distractors of another data set need PWCA, but the model has no such branch: leave them out "
            "(distractor_dataset, --distractor_dir)."
        )
    # Images of another data set have other classes.
    if pair_sampling not in ("any", "inter_class"):
        raise ValueError(
            f"pair_sampling='{pair_sampling}' chooses other distractors than images of another data set "
            "(distractor_dataset, --distractor_dir): give only one of them."
        )


__all__ = ["check_best_metric", "check_distractors", "check_inputs", "logged_metrics"]
