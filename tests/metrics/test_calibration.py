"""Calibration against loops, and against a grid of temperatures."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from dcal_hf.metrics import expected_calibration_error, fit_temperature


def loop_error(probabilities, labels, num_bins):
    """Guo et al., equations 2 and 3."""
    total = 0.0
    for number in range(1, num_bins + 1):
        members = [
            (max(row), row.index(max(row)) == label)
            for row, label in zip(probabilities.tolist(), labels.tolist())
            if (number - 1) / num_bins < max(row) <= number / num_bins
        ]
        if members:
            confidence, accuracy = (sum(values) / len(members) for values in zip(*members))
            total += len(members) / len(labels) * abs(accuracy - confidence)
    return total


def negative_log_likelihood(logits, labels, temperature):
    return -log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean()


def sample_logits(seed, scale, n=400, classes=5):
    """Labels sampled from the softmax of logits, and the logits scaled by about the right temperature."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (n, classes))
    labels = np.array([generator.choice(classes, p=row) for row in softmax(logits, axis=1)])
    return logits * scale, labels


@pytest.mark.parametrize("num_bins", [1, 4, 10, 15])
@pytest.mark.parametrize("seed", range(3))
def test_error_equals_plain_loop(seed, num_bins):
    logits, labels = sample_logits(seed, 3.0)
    probabilities = softmax(logits, axis=1)
    expected = loop_error(probabilities, labels, num_bins)
    assert expected_calibration_error(probabilities, labels, num_bins) == pytest.approx(expected, abs=1e-12)
    assert expected > 0.05


def test_edges_of_bins_belong_to_the_lower_one():
    # Confidence 0.5 is in the bin (0, 0.5], 0.75 and 1.0 are in (0.5, 1].
    probabilities = np.array([[0.5, 0.5], [0.25, 0.75], [0.0, 1.0]])
    # The first prediction is wrong: |0 - 0.5| / 3. The others are right: |2 - 1.75| / 3.
    assert expected_calibration_error(probabilities, np.array([1, 1, 1]), 2) == pytest.approx(0.25)
    assert loop_error(probabilities, np.array([1, 1, 1]), 2) == pytest.approx(0.25)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 1000.0])
@pytest.mark.parametrize("seed", range(2))
def test_temperature_is_the_best_of_a_grid(seed, scale):
    logits, labels = sample_logits(seed, scale)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(scale, rel=0.3)
    grid = temperature * np.linspace(0.5, 2.0, 3001)
    losses = [negative_log_likelihood(logits, labels, candidate) for candidate in grid]
    assert grid[np.argmin(losses)] == pytest.approx(temperature, rel=1e-3)
    assert negative_log_likelihood(logits, labels, temperature) <= min(losses)


def test_temperature_changes_confidences_but_not_predictions():
    logits, labels = sample_logits(0, 4.0, n=4000)
    temperature = fit_temperature(logits[:2000], labels[:2000])
    before, after = softmax(logits[2000:], axis=1), softmax(logits[2000:] / temperature, axis=1)
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    assert expected_calibration_error(before, labels[2000:]) > 0.15
    assert expected_calibration_error(after, labels[2000:]) < 0.04


def test_single_precision_and_shifted_logits():
    logits, labels = sample_logits(1, 2.0)
    temperature = fit_temperature(logits, labels)
    shifted = logits.astype(np.float32) + 8
    assert fit_temperature(shifted, labels) == pytest.approx(temperature, rel=1e-5)
    probabilities = softmax(logits.astype(np.float32), axis=1)
    expected = loop_error(probabilities, labels, 15)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_calibration_error(np.eye(2) * 3, np.array([0, 1])), "row 0 is not: apply softmax"),
        (lambda: expected_calibration_error([[1.5, -0.5]], np.array([0])), "row 0 is not"),
        (lambda: expected_calibration_error(np.eye(2), np.array([0, 1]), 0), "at least 1, got 0"),
        (lambda: expected_calibration_error(np.eye(2), np.array([0, 2])), "from 0 to 1, got 2"),
        (lambda: fit_temperature(np.eye(2), np.array([0, 1])), "All examples are classified correctly"),
        (lambda: fit_temperature([[2.0, 2.0]], np.array([0])), "All examples are classified correctly"),
        (lambda: fit_temperature(np.eye(2), np.array([1, 0])), "do not have higher logits than the others"),
        (lambda: fit_temperature([[1.0, -np.inf]], np.array([0])), "must be finite, got -inf"),
    ],
)
def test_invalid_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
