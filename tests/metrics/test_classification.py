import csv
import os
import pickle

import evaluate
import numpy as np
import pytest
from transformers import EvalPrediction

from dcal_hf.metrics import (
    ClassificationMetrics,
    FineGrainedAccuracy,
    class_mean_accuracy,
    confusion_matrix,
    save_confusion_matrix,
    top_k_accuracy,
)


SCORES = [[0.9, 0.1, 0.0], [0.6, 0.3, 0.1], [0.2, 0.8, 0.0], [0.5, 0.1, 0.4]]
LABELS = [0, 1, 1, 2]
HAND_RESULT = {"accuracy": 0.5, "top5_accuracy": 1.0, "class_mean_accuracy": (1 + 0.5 + 0) / 3}


@pytest.fixture(autouse=True)
def metrics_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)


def best_classes(row):
    return sorted(range(len(row)), key=lambda index: (-row[index], index))


def loop_top_k(scores, labels, k):
    return sum(label in best_classes(row)[:k] for row, label in zip(scores, labels)) / len(labels)


def loop_class_mean(predicted, labels):
    recalls = []
    for name in sorted(set(labels)):
        of_class = [guess == name for guess, label in zip(predicted, labels) if label == name]
        recalls.append(sum(of_class) / len(of_class))
    return sum(recalls) / len(recalls)


def random_case(seed, classes=9, n=60):
    generator = np.random.default_rng(seed)
    # Few distinct scores, so that most examples contain ties.
    scores = generator.integers(0, 5, (n, classes)).astype(np.float32)
    return scores, generator.integers(0, classes - 1, n)


@pytest.mark.parametrize("k", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("seed", range(4))
def test_top_k_equals_sorting_by_hand(seed, k):
    scores, labels = random_case(seed)
    expected = loop_top_k(scores.tolist(), labels.tolist(), k)
    assert top_k_accuracy(scores, labels, k) == pytest.approx(expected)
    assert expected == 1.0 or k < 9


def test_top_k_ties_go_to_the_lower_class():
    scores = np.array([[1.0, 1.0, 1.0]])
    assert [top_k_accuracy(scores, [label], k=2) for label in (0, 1, 2)] == [1.0, 1.0, 0.0]


def test_top_1_is_argmax():
    scores, labels = random_case(7)
    assert top_k_accuracy(scores, labels) == (scores.argmax(axis=1) == labels).mean()


def test_top_k_beyond_the_classes_counts_all():
    assert top_k_accuracy(np.array([[0.1, 0.9]]), [0], k=5) == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_class_mean_equals_loop(seed):
    scores, labels = random_case(seed)
    predicted = scores.argmax(axis=1)
    expected = loop_class_mean(predicted.tolist(), labels.tolist())
    assert class_mean_accuracy(predicted, labels) == pytest.approx(expected)
    assert expected != pytest.approx((predicted == labels).mean())


def test_class_mean_weights_classes_equally():
    assert class_mean_accuracy([0, 0, 0, 0, 7], [0, 0, 0, 0, 3]) == 0.5


def test_confusion_matrix_rows_are_true_classes():
    matrix = confusion_matrix([1, 1, 0, 2, 1], [0, 0, 0, 2, 1], num_classes=4)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_confusion_matrix_takes_any_integers():
    labels = np.array([0, 199, 255], dtype=np.uint8)
    matrix = confusion_matrix(labels[::-1].astype(np.uint64), labels, num_classes=256)
    assert sorted(zip(*np.nonzero(matrix))) == [(0, 255), (199, 199), (255, 0)]


def test_confusion_matrix_file(tmp_path):
    path = tmp_path / "confusion.csv"
    path.write_text("old")
    names = ["Gull, Western", 'The "wren"', "Möwe"]
    matrix = np.arange(9).reshape(3, 3)
    save_confusion_matrix(matrix, names, path)
    with open(path, encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head[1:] == names
    assert [row[0] for row in rows] == names
    assert [[int(count) for count in row[1:]] for row in rows] == matrix.tolist()
    assert os.listdir(tmp_path) == ["confusion.csv"]


def test_interrupted_confusion_matrix_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "confusion.csv"
    path.write_text("old")

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_confusion_matrix(np.eye(1, dtype=int), ["wren"], path)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), r"n > 0, got \(0, 3\) and \(0,\)"),
        (np.zeros((2, 3)), [0], r"got \(2, 3\) and \(1,\)"),
        (np.zeros(3), [0, 1, 2], r"got \(3,\) and \(3,\)"),
        (np.zeros((2, 3)), [[0], [1]], r"got \(2, 3\) and \(2, 1\)"),
        ([[0.0, 1.0], [np.nan, 1.0]], [0, 1], "got NaN in example 1"),
        (np.zeros((2, 3)), [0, 3], "from 0 to 2, got 3"),
        (np.zeros((2, 3)), [-1, 0], "from 0 to 2, got -1"),
        (np.zeros((2, 3)), [0.0, 1.0], "must be integers, got an array of type float64"),
    ],
)
def test_invalid_scores(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        top_k_accuracy(scores, labels)


def test_invalid_k():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        top_k_accuracy(SCORES, LABELS, k=0)


@pytest.mark.parametrize("function", [class_mean_accuracy, lambda *pair: confusion_matrix(*pair, num_classes=2)])
@pytest.mark.parametrize("pair", [([], []), ([0], [0, 1]), ([[0]], [[0]])])
def test_invalid_classes(function, pair):
    with pytest.raises(ValueError, match=r"must have the same shape \(n,\)"):
        function(*pair)


@pytest.mark.parametrize("pair", [([0, 2], [0, 0]), ([0, 0], [0, 2])])
def test_confusion_matrix_rejects_unknown_classes(pair):
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        confusion_matrix(*pair, num_classes=2)


def test_confusion_matrix_needs_a_name_per_class(tmp_path):
    with pytest.raises(ValueError, match=r"of 2 classes must be square, got shape \(3, 3\)"):
        save_confusion_matrix(np.eye(3), ["wren", "robin"], tmp_path / "confusion.csv")


@pytest.mark.parametrize("keep_in_memory", [True, False])
def test_metric_by_class(keep_in_memory):
    metric = FineGrainedAccuracy(keep_in_memory=keep_in_memory)
    for _ in range(2):
        assert metric.compute(predictions=SCORES, references=LABELS) == pytest.approx(HAND_RESULT)


def test_metric_over_batches_equals_arithmetic():
    scores, labels = random_case(3)
    metric = FineGrainedAccuracy()
    for start in range(0, 60, 16):
        metric.add_batch(predictions=scores[start:start + 16], references=labels[start:start + 16])
    assert metric.compute() == pytest.approx(
        {
            "accuracy": loop_top_k(scores.tolist(), labels.tolist(), 1),
            "top5_accuracy": loop_top_k(scores.tolist(), labels.tolist(), 5),
            "class_mean_accuracy": loop_class_mean([best_classes(row)[0] for row in scores], labels.tolist()),
        }
    )


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], [], "n > 0"),
        ([[0.0, 1.0]], [0, 1], r"predictions \(1\) and references \(2\)"),
        ([[np.nan, 1.0]], [0], "got NaN in example 0"),
        ([[0.0, 1.0]], [2], "from 0 to 1, got 2"),
        ([[0.0, 1.0], [1.0]], [0, 0], "same number of class scores"),
    ],
)
def test_metric_rejects_invalid_input(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        FineGrainedAccuracy(keep_in_memory=True).compute(predictions=scores, references=labels)


def test_branches_are_named_in_their_order():
    right, wrong = np.eye(6)[[0, 1]], np.eye(6)[[5, 5]]
    metrics = pickle.loads(pickle.dumps(ClassificationMetrics(("both", "sa", "glca"))))
    result = metrics(EvalPrediction((right, np.stack([right[0], wrong[1]]), wrong), np.array([0, 1])))
    assert result == {
        "accuracy": 1.0, "top5_accuracy": 1.0, "class_mean_accuracy": 1.0,
        "glca_accuracy": 0.0, "glca_top5_accuracy": 1.0, "glca_class_mean_accuracy": 0.0,
        "sa_accuracy": 0.5, "sa_top5_accuracy": 1.0, "sa_class_mean_accuracy": 0.5,
    }
    assert sorted(metrics.metric_names) == sorted(result)


def test_single_output_has_plain_names():
    result = ClassificationMetrics()(EvalPrediction(np.array(SCORES), np.array(LABELS)))
    assert result == pytest.approx(HAND_RESULT)


def test_number_of_outputs_must_be_that_of_branches():
    scores = np.array(SCORES)
    with pytest.raises(ValueError, match="each of both, sa, glca, got 2 arrays"):
        ClassificationMetrics()(EvalPrediction((scores, scores), np.array(LABELS)))
