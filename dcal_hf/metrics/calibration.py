"""Calibration of a classifier's probabilities: expected calibration error, temperature scaling."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax

from .classification import check_scores


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> float:
    """Mean gap between the confidence in the predicted class and the accuracy (Guo et al., ICML 2017).

    Examples are grouped by confidence into bins `((i - 1) / num_bins, i / num_bins]`. The gap between the mean
    confidence and the accuracy of each bin is weighted by its share of the examples. Ties between probabilities go to
    the lower class index.

    Args:
        probabilities (`np.ndarray` of shape `(n, classes)`):
            One probability per class, such as the softmax of logits divided by the temperature of [`fit_temperature`].
        labels (`np.ndarray` of shape `(n,)`):
            The true classes.
        num_bins (`int`, *optional*, defaults to 15):
            Number of bins.

    Returns:
        `float`: the error, from 0 to 1.

    Raises:
        ValueError: If the rows do not sum to 1, `num_bins` is below 1, or probabilities or labels are invalid.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}.")
    probabilities, labels = check_scores(probabilities, labels)
    probabilities = probabilities.astype(np.float64)
    off = (probabilities < 0).any(axis=1) | (np.abs(probabilities.sum(axis=1) - 1) > 1e-3)
    if off.any():
        raise ValueError(
            f"Each row must be probabilities with a sum of 1, but row {off.argmax()} is not: apply softmax to logits."
        )
    confidences = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.searchsorted(np.arange(1, num_bins) / num_bins, confidences, side="left")
    # |mean confidence - accuracy| · share of the bin = |sum of both over the bin| / n.
    gaps = np.bincount(bins, weights=confidences - correct, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the negative log-likelihood of `softmax(logits / temperature)`.

    Temperature scaling (Guo et al., ICML 2017, section 4.2) changes confidences but not predictions. Fit it on
    examples that the model was not trained on, and evaluate it on others.

    The negative log-likelihood is convex in the inverse temperature. At the optimum, the mean expected logit under the
    model equals the mean logit of the true classes.

    Args:
        logits (`np.ndarray` of shape `(n, classes)`):
            The classifier's logits, finite.
        labels (`np.ndarray` of shape `(n,)`):
            The true classes.

    Returns:
        `float`: the temperature; above 1 for an overconfident classifier.

    Raises:
        ValueError: If there is no optimal temperature (every example is classified correctly, or the true classes do
            not have higher logits than the others on average), or logits or labels are invalid.

    Example:

    ```python
    >>> temperature = fit_temperature(validation_logits, validation_labels)
    >>> expected_calibration_error(scipy.special.softmax(test_logits / temperature, axis=1), test_labels)
    ```
    """
    logits, labels = check_scores(logits, labels)
    if not np.isfinite(logits).all():
        raise ValueError(f"Logits must be finite, got {logits[~np.isfinite(logits)][0]}.")
    logits = logits.astype(np.float64)
    # This does not change the softmax; the true class then has logit 0.
    logits -= np.take_along_axis(logits, labels[:, None], axis=1)
    if (logits <= 0).all():
        raise ValueError(
            "All examples are classified correctly, so the likelihood increases as the temperature approaches 0: "
            "include examples with classification errors."
        )
    if logits.mean() >= 0:
        raise ValueError(
            "The true classes do not have higher logits than the others on average, so the likelihood increases with "
            "the temperature: check that labels and logits belong to the same examples and classes."
        )

    def slope(inverse: float) -> float:
        return float((softmax(logits * inverse, axis=1) * logits).sum(axis=1).mean())

    scale = np.abs(logits).max()
    low, high = 1 / scale, 1 / scale
    while slope(low) > 0:
        low /= 2
    while slope(high) < 0:
        high *= 2
    return 1 / brentq(slope, low, high, xtol=1e-14 * high, rtol=1e-12) if low < high else 1 / low


__all__ = ["expected_calibration_error", "fit_temperature"]
