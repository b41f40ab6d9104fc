"""Open-set metrics against loops over images."""

import itertools

import numpy as np
import pytest
import torch

from dcal_hf.metrics import auroc, gallery_threshold, open_set_accuracy, open_set_metrics


def loop_accuracy(predicted, identities, known):
    """The accuracy per individual, averaged over known and over new individuals."""
    shares = {True: [], False: []}
    for identity in sorted(set(identities)):
        answers = [answer for answer, truth in zip(predicted, identities) if truth == identity]
        right = identity if identity in known else -1
        shares[identity in known].append(sum(answer == right for answer in answers) / len(answers))
    baks, baus = (sum(shares[kind]) / len(shares[kind]) for kind in (True, False))
    return {"baks": baks, "baus": baus, "baks_baus": (baks * baus) ** 0.5}


def loop_auroc(scores, positive):
    """AUROC as a loop over all pairs of a positive and a negative."""
    higher = [score for score, truth in zip(scores, positive) if truth]
    lower = [score for score, truth in zip(scores, positive) if not truth]
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(higher, lower)]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("seed", range(4))
def test_accuracy_equals_plain_loop(seed):
    generator = np.random.default_rng(seed)
    identities = generator.integers(0, 12, 60)
    predicted = np.where(generator.random(60) < 0.5, np.where(identities < 7, identities, -1),
                         generator.integers(-1, 7, 60))
    known = generator.permutation(np.repeat(np.arange(7), 3))
    expected = loop_accuracy(predicted.tolist(), identities.tolist(), set(range(7)))
    assert open_set_accuracy(predicted, identities, known) == pytest.approx(expected, abs=1e-12)
    assert len({round(value, 6) for value in expected.values()}) == 3


def test_each_individual_counts_once():
    # Individual 1 has three images, all right, and 2 has one, wrong; the new ones are 8, half right, and 9, right.
    result = open_set_accuracy([1, 1, 1, -1, -1, 1, -1], [1, 1, 1, 2, 8, 8, 9], [1, 2])
    assert result == pytest.approx({"baks": 0.5, "baus": 0.75, "baks_baus": 0.375 ** 0.5})


@pytest.mark.parametrize("seed", range(4))
def test_auroc_equals_all_pairs_with_ties(seed):
    generator = np.random.default_rng(seed)
    positive = generator.random(50) < 0.3
    scores = generator.integers(0, 6, 50) + positive
    expected = loop_auroc(scores, positive)
    assert auroc(scores, positive) == pytest.approx(expected, abs=1e-15)
    assert auroc(torch.tensor(scores), torch.tensor(positive)) == auroc(scores, positive)
    assert auroc(-scores, positive) == pytest.approx(1 - expected, abs=1e-15)
    assert auroc(np.zeros(50), positive) == 0.5


def test_auroc_is_exact_for_many_examples():
    # The ranks sum up to 1e11.
    scores, positive = np.arange(400_000), np.arange(400_000) >= 200_000
    assert auroc(scores, positive) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_nearest_item_equals_plain_loop(seed):
    generator = np.random.default_rng(seed)
    # Small integers, so that some distances are equal to the threshold or to each other.
    query, gallery = (generator.integers(0, 4, (n, 3)) for n in (40, 30))
    query_ids, gallery_ids = generator.integers(0, 9, 40), generator.integers(-1, 6, 30)
    threshold = 2 ** 0.5
    predicted, nearest = [], []
    for features in query:
        items = [(np.linalg.norm(features - item), j) for j, item in enumerate(gallery) if gallery_ids[j] != -1]
        distance, row = min(items)
        nearest.append(distance)
        predicted.append(gallery_ids[row] if distance < threshold else -1)
    known = set(gallery_ids.tolist()) - {-1}
    is_new = [identity not in known for identity in query_ids.tolist()]
    expected = loop_accuracy(predicted, query_ids.tolist(), known)
    expected |= {"auroc_new": loop_auroc(nearest, is_new), "num_new": sum(is_new), "num_known": 40 - sum(is_new)}
    assert threshold in nearest and -1 in gallery_ids
    results = [open_set_metrics(query, gallery, query_ids, gallery_ids, threshold, chunk_size=n) for n in (7, 512)]
    assert results[0] == pytest.approx(expected, abs=1e-12)
    tensors = torch.tensor(query), torch.tensor(gallery)
    results.append(open_set_metrics(*tensors, query_ids, gallery_ids, threshold))
    assert results[0] == results[1] == results[2]


QUERY, GALLERY = np.eye(2), np.eye(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: open_set_accuracy([1], [1], [1]), "got 1 of known and 0 of new ones"),
        (lambda: open_set_accuracy([1, 2], [1, 2], [3]), "got 0 of known and 2 of new ones"),
        (lambda: open_set_accuracy([1, 2], [1], [3]), r"same shape \(n,\), got \(2,\) and \(1,\)"),
        (lambda: open_set_accuracy(["new"], ["Tom"], ["Ann"]), "must be integers, -1 for a new individual"),
        (lambda: auroc([1.0, 2.0], [True, True]), "got 2 and 0"),
        (lambda: auroc([1.0, np.nan], [True, False]), "with 1 NaN"),
        (lambda: auroc([1.0], [True, False]), r"got \(1,\) and \(2,\)"),
        (lambda: open_set_metrics(QUERY, GALLERY, [1], [1, 2], 0.5), "identities for 2 queries and 2 gallery items"),
        (lambda: open_set_metrics(QUERY, GALLERY, [1, 2], [-1, -1], 0.5), "shows no individual"),
        (lambda: open_set_metrics(QUERY, GALLERY, [1, 3], [1, 2], 0.5, chunk_size=0), "at least 1, got 0"),
    ],
)
def test_invalid_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def loop_threshold(features, ids, cameras):
    """Every image as one of a known and of a new individual, at every threshold that makes a difference."""
    answers = {"known": [], "new": []}
    for image, identity in enumerate(ids):
        distances = [float(np.linalg.norm(features[image] - other)) for other in features]
        apart = [cameras[other] != cameras[image] if cameras else other != image for other in range(len(ids))]
        others = [distances[other] for other in range(len(ids)) if ids[other] != identity]
        same = [distances[other] for other in range(len(ids)) if ids[other] == identity and apart[other]]
        answers["new"].append((identity, min(others), None))
        if same:
            answers["known"].append((identity, min(same), min(others)))

    def accuracy(kind, is_right):
        shares = {}
        for answer in answers[kind]:
            shares.setdefault(answer[0], []).append(is_right(answer))
        return np.mean([np.mean(share) for share in shares.values()])

    scores = {}
    for threshold in sorted({distance for _, distance, _ in answers["known"] + answers["new"]}):
        baks = accuracy("known", lambda answer: answer[1] < min(threshold, answer[2]))
        baus = accuracy("new", lambda answer: answer[1] >= threshold)
        scores[threshold] = baks * baus
    return scores


@pytest.mark.parametrize("with_cameras", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_the_best_of_all_on_the_gallery(seed, with_cameras):
    generator = np.random.default_rng(seed)
    ids = np.concatenate([generator.integers(0, 6, 30), [6]])
    features = (generator.normal(size=(7, 4))[ids] + 0.6 * generator.normal(size=(31, 4))).astype(np.float32)
    cameras = generator.integers(0, 3, 31).tolist() if with_cameras else None
    # Junk does not count.
    with_junk = np.concatenate([features, features[:3] + 0.01]), np.concatenate([ids, [-1] * 3])
    junk_cameras = None if cameras is None else cameras + [0] * 3
    found = gallery_threshold(*with_junk, junk_cameras, chunk_size=7)
    scores = loop_threshold(features.astype(np.float64), ids.tolist(), cameras)
    nearest = min(scores, key=lambda threshold: abs(threshold - found))
    assert found == pytest.approx(nearest, rel=1e-5)
    assert 0 < scores[nearest] == pytest.approx(max(scores.values()))


@pytest.mark.parametrize("ids", [[1, 1, 1], [1, 2, 3]])
def test_a_threshold_needs_two_individuals_and_a_pair(ids):
    with pytest.raises(ValueError, match="at least two individuals, one of which has two images"):
        gallery_threshold(np.eye(3, dtype=np.float32), ids)
