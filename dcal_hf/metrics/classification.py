"""Metrics of fine-grained classification in NumPy: top-k and class-mean accuracy, and the confusion matrix."""

import numpy as np


def check_scores(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checks class scores and labels, and returns them as arrays.

    Args:
        scores (`np.ndarray` of shape `(n, classes)`):
            One score per class, larger for a more likely class: logits or probabilities.
        labels (`np.ndarray` of shape `(n,)`):
            The true classes, integers from 0 to `classes - 1`.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the scores and the labels.

    Raises:
        ValueError: If there are no examples, the shapes do not match, a score is NaN, or a label is not one of the
            classes.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not scores.size:
        raise ValueError(
            "Classification metrics need scores of shape (n, classes) and labels of shape (n,) with n > 0, "
            f"got {scores.shape} and {labels.shape}."
        )
    if np.isnan(scores).any():
        raise ValueError(f"Scores must be numbers, got NaN in example {np.isnan(scores).any(axis=1).argmax()}.")
    _check_classes(labels, scores.shape[1])
    return scores, labels


def _check_classes(labels: np.ndarray, num_classes: int) -> None:
    """Raises a `ValueError` unless every entry of `labels` is an integer from 0 to `num_classes - 1`."""
    if labels.dtype.kind not in "iu":
        raise ValueError(f"Classes must be integers, got an array of type {labels.dtype}.")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.size:
        raise ValueError(f"Classes must be from 0 to {num_classes - 1}, got {outside[0]}.")


def _check_pair(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns predicted and true classes as arrays, or raises a `ValueError` if they are empty or differ in shape."""
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if labels.ndim != 1 or predicted.shape != labels.shape or not labels.size:
        raise ValueError(
            "Predicted and true classes must have the same shape (n,) with n > 0, "
            f"got {predicted.shape} and {labels.shape}."
        )
    return predicted, labels


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of the examples whose true class is among the `k` classes with the highest scores.

    Ties go to the lower class index, as in `np.argmax`. With at most `k` classes the accuracy is 1.

    Args:
        scores (`np.ndarray` of shape `(n, classes)`):
            One score per class.
        labels (`np.ndarray` of shape `(n,)`):
            The true classes.
        k (`int`, *optional*, defaults to 1):
            Number of predicted classes per example.

    Returns:
        `float`: the accuracy, from 0 to 1.

    Raises:
        ValueError: If `k` is below 1, or the scores or labels are invalid.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    scores, labels = check_scores(scores, labels)
    true_scores = np.take_along_axis(scores, labels[:, None], axis=1)
    tied_before = (scores == true_scores) & (np.arange(scores.shape[1]) < labels[:, None])
    ranks = ((scores > true_scores) | tied_before).sum(axis=1)
    return float((ranks < k).mean())


def class_mean_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the per-class accuracies (balanced accuracy).

    Classes without an example in `labels` are ignored.

    Args:
        predicted (`np.ndarray` of shape `(n,)`):
            The predicted classes.
        labels (`np.ndarray` of shape `(n,)`):
            The true classes.

    Returns:
        `float`: the accuracy, from 0 to 1.

    Raises:
        ValueError: If there are no examples or the shapes differ.
    """
    predicted, labels = _check_pair(predicted, labels)
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return float((np.bincount(classes, weights=predicted == labels) / counts).mean())


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts the examples of each true class by predicted class.

    Args:
        predicted (`np.ndarray` of shape `(n,)`):
            The predicted classes.
        labels (`np.ndarray` of shape `(n,)`):
            The true classes.
        num_classes (`int`):
            Number of classes.

    Returns:
        `np.ndarray` of shape `(num_classes, num_classes)` and type int64: entry `(i, j)` is the number of examples of
        class `i` that were predicted as class `j`.

    Raises:
        ValueError: If there are no examples, the shapes differ, or an entry is not one of the classes.
    """
    predicted, labels = _check_pair(predicted, labels)
    _check_classes(predicted, num_classes)
    _check_classes(labels, num_classes)
    cells = np.ravel_multi_index((labels, predicted), (num_classes, num_classes))
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
