"""Accuracies of fine-grained classification, as an `evaluate` metric and as `compute_metrics` of a `Trainer`."""

from dataclasses import dataclass

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction

from .classification import class_mean_accuracy, top_k_accuracy


class FineGrainedAccuracy(evaluate.Metric):
    """Top-1, top-5 and class-mean accuracy as an `evaluate` metric.

    Use the class directly, or load it with `evaluate.load` and the path of this file. Neither needs a network. Scores
    are stored in single precision.

    Example:

    ```python
    >>> FineGrainedAccuracy().compute(predictions=[[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], references=[0, 1, 1])
    {'accuracy': 0.6666666666666666, 'top5_accuracy': 1.0, 'class_mean_accuracy': 0.75}
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Top-1, top-5 and class-mean accuracy of fine-grained classification.",
            citation="",
            inputs_description="""
Args:
    predictions (`list` or `np.ndarray` of shape `(n, classes)`): one score per class, larger for a more likely class.
    references (`list` or `np.ndarray` of shape `(n,)`): the true classes, integers from 0.

Returns:
    accuracy, top5_accuracy, class_mean_accuracy (`float`): each from 0 to 1.
""",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, float]:
        if len({len(scores) for scores in predictions}) > 1:
            raise ValueError("Every example must have the same number of class scores.")
        scores, labels = np.asarray(predictions, dtype=np.float32), np.asarray(references)
        return {
            "accuracy": top_k_accuracy(scores, labels, k=1),
            "top5_accuracy": top_k_accuracy(scores, labels, k=5),
            "class_mean_accuracy": class_mean_accuracy(scores.argmax(axis=1), labels),
        }


@dataclass(frozen=True)
class ClassificationMetrics:
    """`compute_metrics` of a [`~transformers.Trainer`] for models that return the scores of several branches.

    Args:
        branches (`tuple[str, ...]`, *optional*, defaults to `("both", "sa", "glca")`):
            Branch of each output, in order; a [`~dcal_hf.DCALTrainer`] outputs the named branches. The metrics of
            `"both"` have plain names (`accuracy`, `top5_accuracy`, `class_mean_accuracy`); those of any other branch
            get a prefix (`sa_accuracy`).

    Example:

    ```python
    >>> trainer = DCALTrainer(model, args, compute_metrics=ClassificationMetrics(("both", "sa", "glca")))
    ```
    """

    branches: tuple[str, ...] = ("both", "sa", "glca")

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics of every branch."""
        metrics = ("accuracy", "top5_accuracy", "class_mean_accuracy")
        return [name if branch == "both" else f"{branch}_{name}" for branch in self.branches for name in metrics]

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Computes the metrics of every branch.

        Args:
            prediction (`EvalPrediction`):
                Labels of shape `(n,)`, and as predictions either a tuple with one array of scores of shape
                `(n, classes)` per branch, or a single such array, whose metrics always have plain names.

        Returns:
            `dict[str, float]`: each metric, from 0 to 1.

        Raises:
            ValueError: If the number of arrays differs from the number of branches, or [`FineGrainedAccuracy`]
                rejects one of them.
        """
        scores = prediction.predictions
        if not isinstance(scores, tuple):
            return _branch_metrics("both", scores, prediction.label_ids)
        if len(scores) != len(self.branches):
            raise ValueError(
                f"The model must return one array of scores for each of {', '.join(self.branches)}, "
                f"got {len(scores)} arrays."
            )
        metrics = {}
        for branch, branch_scores in zip(self.branches, scores, strict=True):
            metrics |= _branch_metrics(branch, branch_scores, prediction.label_ids)
        return metrics


def _branch_metrics(branch: str, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    metrics = FineGrainedAccuracy(keep_in_memory=True).compute(predictions=scores, references=labels)
    return metrics if branch == "both" else {f"{branch}_{name}": value for name, value in metrics.items()}
