"""Calibration against a loop over all pairs, and the file of the threshold."""

import itertools
import json
import re
from datetime import datetime, timezone

import numpy as np
import pytest

import dcal_hf
import dcal_hf.retrieval.verification as verification
from dcal_hf.retrieval import VerificationThreshold, calibrate, pair_distances


SOURCE = {"dataset": "turtles", "model_id": "dcal-0123"}


def loop_pairs(embeddings, identities, cameras=None, images=None, distractor_ids=()):
    """Distances of all pairs of the same individual, and of different ones."""
    same, different = [], []
    for i, j in itertools.combinations(range(len(embeddings)), 2):
        if -1 in (identities[i], identities[j]):
            continue
        distance = float(np.sqrt(((embeddings[i] - embeddings[j]) ** 2).sum()))
        if identities[i] != identities[j]:
            different.append(distance)
        elif identities[i] not in distractor_ids:
            one_view = cameras is not None and cameras[i] == cameras[j]
            if not one_view and not (images is not None and images[i] == images[j]):
                same.append(distance)
    return np.array(same), np.array(different)


def sample_individuals(seed, n=80):
    """Clustered embeddings: some individuals with one image, junk, and distractors of identity 0."""
    generator = np.random.default_rng(seed)
    identities = generator.integers(-1, 25, n)
    embeddings = generator.normal(size=(26, 8))[identities + 1] + 0.7 * generator.normal(size=(n, 8))
    cameras = [f"camera {number}" for number in generator.integers(0, 3, n)]
    images = [f"{number}.jpg" for number in generator.integers(0, 40, n)]
    return embeddings, identities, {"cameras": cameras, "images": images, "distractor_ids": [0]}


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.3])
@pytest.mark.parametrize("names", [(), ("cameras",), ("images",), ("cameras", "images", "distractor_ids")])
@pytest.mark.parametrize("seed", range(2))
def test_equals_loop_over_pairs(monkeypatch, seed, names, rate):
    monkeypatch.setattr(verification, "QUERIES_PER_CHUNK", 9)
    embeddings, identities, columns = sample_individuals(seed)
    columns = {name: columns[name] for name in names}
    same, different = loop_pairs(embeddings, identities, **columns)
    result = calibrate(embeddings, identities, **columns, false_accept_rate=rate, **SOURCE)
    assert (different < result.threshold - 1e-9).mean() <= rate < (different < result.threshold + 1e-9).mean()
    assert result.threshold == pytest.approx(np.sort(different)[int(rate * len(different))], abs=1e-12)
    assert result.true_accept_rate == (same < result.threshold).mean()
    assert (result.num_same_pairs, result.num_different_pairs) == (len(same), len(different))
    individuals = set(identities.tolist()) - {-1} - set(columns.get("distractor_ids", ()))
    assert (result.num_images, result.num_identities) == ((identities != -1).sum(), len(individuals))


@pytest.mark.parametrize("rate", [0.5, 0.99, 0.999999, 1 - 1e-9, 1 - 2**-53])
def test_a_rate_below_1_never_accepts_all_pairs(rate):
    """Also where the product of the rate and the 15 pairs of different individuals rounds to 15."""
    embeddings, identities = np.arange(8.0)[:, None] ** 2, [1, 1, 1, 1, 1, 2, 2, 2]
    _, different = loop_pairs(embeddings, identities)
    result = calibrate(embeddings, identities, false_accept_rate=rate, **SOURCE)
    shares = {threshold: np.mean(different < threshold) for threshold in different}
    assert result.threshold == max(threshold for threshold, share in shares.items() if share <= rate)


def test_pairs_at_the_threshold_are_rejected():
    # Four of the nine pairs of different individuals may be accepted, but all nine have the same distance.
    embeddings = np.array([[0.0], [0.0], [0.0], [1.0], [1.0], [1.0]])
    result = calibrate(embeddings, [1, 1, 1, 2, 2, 2], false_accept_rate=0.5, **SOURCE)
    assert (result.threshold, result.true_accept_rate) == (1.0, 1.0)


def test_small_distances_in_single_precision():
    generator = np.random.default_rng(0)
    embeddings = (100 + 1e-2 * generator.normal(size=(40, 4))).astype(np.float32)
    identities = np.arange(40) // 2
    _, different = loop_pairs(embeddings.astype(np.float64), identities)
    result = calibrate(embeddings, identities, false_accept_rate=0.1, **SOURCE)
    assert result.threshold == pytest.approx(np.sort(different)[int(0.1 * len(different))], rel=1e-6)


def test_distances_of_pairs():
    first, second = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    expected = [sum((float(a) - float(b)) ** 2 for a, b in zip(*pair)) ** 0.5 for pair in zip(first, second)]
    assert pair_distances(first, second) == pytest.approx(expected, rel=1e-12)


def test_the_saved_threshold_describes_its_calibration(tmp_path):
    embeddings, identities, columns = sample_individuals(0)
    result = calibrate(embeddings, identities, **columns, **SOURCE)
    path = result.save(tmp_path)
    assert VerificationThreshold.load(tmp_path, "dcal-0123") == result
    content = json.loads(path.read_text())
    assert content["date"] == datetime.now(timezone.utc).date().isoformat()
    assert (content["dataset"], content["dcal_hf_version"]) == ("turtles", dcal_hf.__version__)
    assert [entry.name for entry in tmp_path.iterdir()] == ["verification.json"]
    with pytest.raises(ValueError, match="was calibrated for model dcal-0123, not for dcal-4567: calibrate again"):
        VerificationThreshold.load(tmp_path, "dcal-4567")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:40], "is damaged: verification.json is not valid JSON"),
        (lambda text: text.replace("threshold", "treshold"), "is damaged: verification.json has no threshold"),
        (lambda text: re.sub('"threshold": .*,', '"threshold": NaN,', text), "has a threshold that is not finite"),
        (lambda text: re.sub('"threshold": .*,', '"threshold": "1",', text), "threshold of .* has another type"),
        (lambda text: "[1]", "is damaged: verification.json is not a JSON object"),
        (lambda text: text.replace('"format_version": 1', '"format_version": 2'), "has format version 2"),
    ],
)
def test_damaged_threshold_files_are_rejected(tmp_path, change, message):
    embeddings, identities, _ = sample_individuals(0)
    path = calibrate(embeddings, identities, **SOURCE).save(tmp_path)
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        VerificationThreshold.load(tmp_path, "dcal-0123")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"identities": [1, 2, 3, 4]}, "turtles has no pair of images of the same individual: give at least two"),
        ({"cameras": [1, 1, 2, 2]}, "no pair of images of the same individual by two cameras: give"),
        ({"images": ["a", "a", "b", "b"]}, "no pair of images of the same individual: give"),
        ({"distractor_ids": [1, 2]}, "no pair of images of the same individual: give"),
        ({"false_accept_rate": 0.2}, "of 0.2 needs at least 5 pairs of images of different .* turtles has 4: give"),
        ({"identities": [1, 1, 1, 1]}, "turtles has 0: give more images, or a higher rate"),
        ({"false_accept_rate": 1.0}, "above 0 and below 1, got 1"),
        ({"cameras": [1, 2]}, re.escape("for each of 4 embeddings, got an array of (2,)")),
    ],
)
def test_invalid_input(arguments, message):
    usable = {"identities": [1, 1, 2, 2], "false_accept_rate": 0.25}
    assert calibrate(np.eye(4), **usable, **SOURCE).num_different_pairs == 4
    with pytest.raises(ValueError, match=message):
        calibrate(np.eye(4), **usable | arguments, **SOURCE)
