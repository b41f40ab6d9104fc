"""The accuracies of fine-grained classification as an `evaluate` metric and as `compute_metrics` of a `Trainer`."""

from dataclasses import dataclass

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction

from .classification import class_mean_accuracy, top_k_accuracy


class FineGrainedAccuracy(evaluate.Metric):
    """Top-1, top-5 and class-mean accuracy as an `evaluate` metric.

    It is used by its class, or loaded by the path of this file with `evaluate.load`, and needs no network either way.
    Scores are kept in single precision.

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
    predictions (`list` or `np.ndarray` of shape `(n, classes)`): one score per class, the larger the likelier.
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
    """`compute_metrics` of a [`~transformers.Trainer`] for models that answer with the scores of several branches.

    Args:
        branches (`tuple[str, ...]`, *optional*, defaults to `("both", "sa", "glca")`):
            What the model's outputs are, in their order: a [`~dcal_hf.DCALTrainer`] gives those that are named. The
            metrics of `"both"` bear plain names (`accuracy`, `top5_accuracy`, `class_mean_accuracy`), those of another
            branch are prefixed (`sa_accuracy`).

    Example:

    ```python
    >>> trainer = DCALTrainer(model, args, compute_metrics=ClassificationMetrics(("both", "sa", "glca")))
    ```
    """

    branches: tuple[str, ...] = ("both", "sa", "glca")

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Computes the metrics of every branch.

        Args:
            prediction (`EvalPrediction`):
                Labels of shape `(n,)`, and as predictions either one array of scores of shape `(n, classes)`, whose
                metrics bear plain names whatever the branches, or a tuple of one such array per branch.

        Returns:
            `dict[str, float]`: each metric, from 0 to 1.

        Raises:
            ValueError: If the number of arrays is not the number of branches, or [`FineGrainedAccuracy`] cannot use
                one of them.
        """
        scores = prediction.predictions
        if not isinstance(scores, tuple):
            return _branch_metrics("both", scores, prediction.label_ids)
        if len(scores) != len(self.branches):
            raise ValueError(
                f"The model must answer with one array of scores for each of {', '.join(self.branches)}, "
                f"got {len(scores)} arrays."
            )
        metrics = {}
        for branch, branch_scores in zip(self.branches, scores, strict=True):
            metrics |= _branch_metrics(branch, branch_scores, prediction.label_ids)
        return metrics


def _branch_metrics(branch: str, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    metrics = FineGrainedAccuracy(keep_in_memory=True).compute(predictions=scores, references=labels)
    return metrics if branch == "both" else {f"{branch}_{name}": value for name, value in metrics.items()}
