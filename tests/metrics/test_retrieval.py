import math

import evaluate
import numpy as np
import pytest
import torch

import dcal_hf.metrics.retrieval as retrieval
from dcal_hf.metrics import FeatureDistances, RetrievalMAP, distance_metrics, retrieval_metrics


FPRS = (0.0, 1e-3, 0.01, 0.1, 0.5)


@pytest.fixture(autouse=True)
def metrics_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)


class MatrixDistances:
    """Distances stored as a matrix. Records the number of rows of each request."""

    def __init__(self, matrix):
        self.matrix = np.asarray(matrix)
        self.shape = self.matrix.shape
        self.chunk_sizes = []

    def rows(self, queries):
        self.chunk_sizes.append(len(queries))
        return self.matrix[queries]


def official_trapezoid(hits):
    """The script of the Market-1501 authors, applied to the ranked items."""
    total, old_recall, old_precision, found = 0.0, 0.0, 1.0, 0
    for position, hit in enumerate(hits):
        found += hit
        recall, precision = found / sum(hits), found / (position + 1)
        total += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return total


def step_precision(hits):
    return sum(sum(hits[:i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit) / sum(hits)


def r_precision(hits):
    return sum(hits[:sum(hits)]) / sum(hits)


def map_at_r(hits):
    """Equation of Musgrave et al.: the mean of P(i) over i = 1, ..., R, where P(i) is 0 unless item i is a match."""
    total = 0.0
    for position in range(1, sum(hits) + 1):
        total += sum(hits[:position]) / position if hits[position - 1] else 0.0
    return total / sum(hits)


def loop_metrics(matrix, ids, cameras=None, images=None):
    """The protocol in plain loops over a distance matrix."""
    rankings, matching, others = [], [], []
    for i, row in enumerate(matrix.tolist()):
        kept = []
        for j, distance in enumerate(row):
            own = cameras is not None and ids[0][i] == ids[1][j] and cameras[0][i] == cameras[1][j]
            same = images is not None and images[0][i] == images[1][j]
            if ids[1][j] != -1 and not own and not same:
                kept.append((distance, j, bool(ids[0][i] == ids[1][j])))
        hits = [hit for _, _, hit in sorted(kept)]
        if any(hits):
            rankings.append(hits)
            matching += [distance for distance, _, hit in kept if hit]
            others += [distance for distance, _, hit in kept if not hit]
    metrics = {
        "map": np.mean([step_precision(hits) for hits in rankings]),
        "map_trapezoid": np.mean([official_trapezoid(hits) for hits in rankings]),
        "minp": np.mean([sum(hits) / max(i + 1 for i, hit in enumerate(hits) if hit) for hits in rankings]),
        "r_precision": np.mean([r_precision(hits) for hits in rankings]),
        "map_at_r": np.mean([map_at_r(hits) for hits in rankings]),
        "num_queries": len(matrix),
        "num_skipped": len(matrix) - len(rankings),
    }
    metrics |= {f"rank{k}": np.mean([any(hits[:k]) for hits in rankings]) for k in (1, 5, 10)}
    others.sort()
    for fpr in FPRS:
        # The largest threshold with at most this share of all negatives below it.
        allowed = max(count for count in range(len(others) + 1) if count <= fpr * len(others))
        threshold = others[allowed] if allowed < len(others) else math.inf
        name = {0.0: "0e+0", 1e-3: "1e-3", 0.01: "1e-2", 0.1: "1e-1", 0.5: "5e-1"}[fpr]
        metrics[f"threshold_at_fpr_{name}"] = threshold
        metrics[f"tpr_at_fpr_{name}"] = np.mean([distance < threshold for distance in matching])
    return metrics


def random_columns(generator, queries, items):
    """Cameras and identities, including junk (-1), distractors (0) and some that only one side has."""
    ids = generator.integers(1, 9, queries), generator.integers(-1, 8, items)
    return ids, (generator.integers(0, 3, queries), generator.integers(0, 3, items))


def squared(query, gallery):
    return ((query[:, None].astype(np.float64) - gallery[None]) ** 2).sum(-1)


@pytest.mark.parametrize("seed", range(6))
def test_equals_plain_loop_with_ties(seed):
    generator = np.random.default_rng(seed)
    query, gallery = (generator.integers(0, 3, (n, 3)).astype(np.float32) for n in (30, 150))
    ids, cameras = random_columns(generator, 30, 150)
    matrix = squared(query, gallery)
    expected = loop_metrics(matrix, ids, cameras)
    assert expected["num_skipped"] > 0 and len(np.unique(matrix)) < 20
    result = distance_metrics(FeatureDistances(query, gallery), *ids, *cameras, fprs=FPRS)
    assert result == pytest.approx(expected, rel=0, abs=1e-9)
    rooted = retrieval_metrics(query, gallery, *ids, *cameras, fprs=FPRS)
    assert rooted == pytest.approx(
        {name: value ** 0.5 if name.startswith("threshold") else value for name, value in expected.items()}, abs=1e-9
    )


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_plain_loop_in_double_precision(seed, metric):
    generator = np.random.default_rng(seed)
    ids, cameras = random_columns(generator, 40, 300)
    query, gallery = (generator.normal(size=(n, 6)) + generator.normal(size=(10, 6))[part] for n, part in
                      zip((40, 300), ids))
    if metric == "euclidean":
        matrix = np.linalg.norm(query[:, None] - gallery[None], axis=-1)
    else:
        lengths = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
        matrix = 1 - np.einsum("qd,gd->qg", query, gallery) / lengths
    result = retrieval_metrics(query, gallery, *ids, *cameras, metric=metric, fprs=FPRS)
    assert result == pytest.approx(loop_metrics(matrix, ids, cameras), rel=0, abs=1e-9)
    assert 0.1 < result["map"] < 0.95


@pytest.mark.parametrize("seed", range(3))
def test_gallery_of_three(seed):
    generator = np.random.default_rng(seed)
    query, gallery = (generator.integers(0, 4, (n, 2)) for n in (5, 3))
    ids = [1, 2, 3, 1, 5], [1, 2, 1]
    cameras = [0, 1, 0, 1, 0], [1, 0, 0]
    expected = loop_metrics(np.sqrt(squared(query, gallery)), ids, cameras)
    assert expected["num_skipped"] == 2
    result = retrieval_metrics(query, gallery, *ids, *cameras, fprs=FPRS)
    assert result == pytest.approx(expected, rel=0, abs=1e-9)


def test_each_image_as_query_for_the_others():
    generator = np.random.default_rng(0)
    features, ids = generator.normal(size=(60, 4)), generator.integers(0, 20, 60)
    names = [f"{row}.jpg" for row in generator.permutation(60)]
    matrix = np.linalg.norm(features[:, None] - features[None], axis=-1)
    columns = {"query_images": names, "gallery_images": names}
    result = retrieval_metrics(features, features, ids, ids, **columns, fprs=FPRS)
    assert result == pytest.approx(loop_metrics(matrix, (ids, ids), images=(names, names)), rel=0, abs=1e-9)
    assert result["num_skipped"] == sum(list(ids).count(one) == 1 for one in ids) > 0
    assert retrieval_metrics(features, features, ids, ids)["rank1"] == 1.0 > result["rank1"]


def test_the_querys_own_image_is_ignored():
    matrix = MatrixDistances([[0.0, 1.0, 2.0]])
    columns = {"query_images": [7], "gallery_images": [7, 8, 9]}
    assert distance_metrics(matrix, [1], [2, 1, 2])["map"] == 0.5
    assert distance_metrics(matrix, [1], [2, 1, 2], **columns)["map"] == 1.0


def test_identity_zero_counts_if_a_query_has_it():
    assert distance_metrics(MatrixDistances([[2.0, 1.0]]), [0], [0, 1])["map"] == 0.5


def test_junk_query_is_skipped():
    result = distance_metrics(MatrixDistances([[1.0, 2.0], [1.0, 2.0]]), [-1, 3], [-1, 3])
    assert (result["num_queries"], result["num_skipped"], result["map"]) == (2, 1, 1.0)


def test_ranking_by_hand():
    # Matches at ranks 1 and 3 with a distractor between them, after junk and an item of the query's camera.
    matrix = MatrixDistances([[0.1, 0.2, 0.5, 0.7, 0.6, 0.9]])
    result = distance_metrics(matrix, [4], [-1, 4, 4, 4, 0, 5], [1], [1, 1, 2, 3, 1, 1], fprs=(0, 0.5))
    assert result == pytest.approx(
        {
            "map": (1 + 2 / 3) / 2, "map_trapezoid": ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2, "minp": 2 / 3,
            # R = 2: the first two items contain one match, at rank 1.
            "r_precision": 1 / 2, "map_at_r": (1 / 1) / 2,
            "rank1": 1, "rank5": 1, "rank10": 1, "num_queries": 1, "num_skipped": 0,
            "tpr_at_fpr_0e+0": 0.5, "threshold_at_fpr_0e+0": 0.6, "tpr_at_fpr_5e-1": 1, "threshold_at_fpr_5e-1": 0.9,
        }
    )


@pytest.mark.parametrize(("ids", "expected"), [([3, 5, 5], 1.0), ([5, 3, 5], 0.5), ([5, 5, 3], 1 / 3)])
def test_ties_go_to_the_lower_gallery_index(ids, expected):
    assert distance_metrics(MatrixDistances([[1.0, 1.0, 1.0]]), [3], ids)["map"] == pytest.approx(expected)


def test_without_negatives_every_pair_is_accepted():
    result = distance_metrics(MatrixDistances([[1.0, 2.0]]), [3], [3, 3])
    assert (result["tpr_at_fpr_1e-4"], result["threshold_at_fpr_1e-4"]) == (1.0, math.inf)


@pytest.mark.parametrize("fpr", [0.999, 1 - 1e-9, 1 - 2**-53])
def test_a_rate_below_1_never_accepts_all_negatives(fpr):
    row = [float(number) for number in range(21)]
    result = distance_metrics(MatrixDistances([row]), [3], [3, *[5] * 20], fprs=(fpr,))
    (threshold,) = (value for name, value in result.items() if name.startswith("threshold"))
    assert threshold == max(number for number in row[1:] if np.mean(np.array(row[1:]) < number) <= fpr)


def test_chunks_do_not_change_the_result():
    generator = np.random.default_rng(1)
    query, gallery = (generator.normal(size=(n, 48)).astype(np.float32) for n in (300, 2500))
    ids, cameras = random_columns(generator, 300, 2500)
    results = [retrieval_metrics(query, gallery, *ids, *cameras, chunk_size=size) for size in (1, 7, 128, 200, 1000)]
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("items", [1, 3, 1500])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_row_does_not_depend_on_the_other_rows(metric, items):
    generator = np.random.default_rng(2)
    query, gallery = (generator.normal(size=(n, 100)).astype(np.float32) for n in (150, items))
    distances = FeatureDistances(query, gallery, metric)
    together = distances.rows(np.arange(150))
    assert together.dtype == np.float32
    for row in (0, 77, 149):
        assert np.array_equal(distances.rows(np.array([row, 3]))[0], together[row])


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_autocast_does_not_round_distances(metric):
    query, gallery = torch.randn(5, 30), torch.randn(7, 30)
    expected = FeatureDistances(query, gallery, metric).rows(np.arange(5))
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(FeatureDistances(query, gallery, metric).rows(np.arange(5)), expected)


def test_holds_no_more_rows_than_a_chunk():
    distances = MatrixDistances(np.random.default_rng(0).random((50, 20)))
    distance_metrics(distances, [1] * 49 + [9], [1, 2] * 10, chunk_size=8)
    assert distances.chunk_sizes == [8] * 6 + [1]


@pytest.mark.parametrize("slack", [0, 100])
def test_selection_of_negatives_is_exact(slack, monkeypatch):
    monkeypatch.setattr(retrieval, "SELECTION_SLACK", slack)
    generator = np.random.default_rng(3)
    for count in (1, 5, 300):
        numbers = generator.integers(0, 200, (40, 30)).astype(np.float32)
        selection = retrieval.Smallest(count)
        for row in numbers:
            selection.add(row)
        assert selection.values().tolist() == sorted(numbers.ravel().tolist())[:count]
        assert sum(map(len, selection._parts)) <= 2 * count + slack + 30 < numbers.size


def test_tensors_of_any_type():
    generator = np.random.default_rng(4)
    query, gallery = (generator.integers(-2, 3, (n, 5)) for n in (20, 50))
    ids, cameras = random_columns(generator, 20, 50)
    expected = retrieval_metrics(query, gallery, *ids, *cameras)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        tensors = torch.tensor(query, dtype=dtype, requires_grad=True), torch.tensor(gallery)
        assert retrieval_metrics(*tensors, *map(torch.tensor, ids), *cameras) == expected


def test_read_only_features():
    features = np.eye(3)
    features.flags.writeable = False
    ids = [1, 2, 1]
    assert retrieval_metrics(features, features, ids, ids)["num_skipped"] == 0


@pytest.mark.parametrize("view", [lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x.astype(">f4")])
def test_features_that_torch_cannot_share(view):
    """Of negative strides, or in another byte order."""
    features = view(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
    copy = np.array(features, dtype=np.float32)
    rows = FeatureDistances(features, features).rows(np.arange(6)[::-1])
    assert np.array_equal(rows, FeatureDistances(copy, copy).rows(np.arange(6))[::-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(query_ids=[8, 9]), r"No query of 2 can be scored. 2 have an identity .* \(such as 8, 9\)"),
        (dict(query_cameras=[1, 1], gallery_cameras=[1, 1, 1]), "scored. 2 have matches from their own camera only"),
        (dict(query_images=[0, 1], gallery_images=[0, 1, 2]), "scored. 2 have no match except their own image"),
        (
            dict(query_ids=[1, 9], query_cameras=[1, 1], gallery_cameras=[1, 1, 1]),
            "1 have an identity .* numbers. 1 have matches from",
        ),
        (dict(gallery_ids=[-1, -1, -1]), "2 have an identity"),
        (dict(query_ids=[1]), r"identities for 2 queries and 3 gallery items, got arrays of shape \(1,\) and \(3,\)"),
        (dict(query_cameras=[1, 1]), "cameras of both the queries and the gallery are needed"),
        (dict(gallery_images=[1, 1, 1]), "images of both"),
        (dict(gallery=np.zeros((3, 3))), r"must have shapes .* got \(2, 2\) and \(3, 3\)"),
        (dict(query=np.zeros((0, 2)), query_ids=[]), "at least one query"),
        (dict(gallery=np.array([[0, 0], [0, np.nan], [0, 0]])), "squared length of gallery row 1 is nan"),
        (dict(metric="dot"), "must be \"euclidean\" or \"cosine\", got 'dot'"),
        (dict(ranks=[0]), r"Ranks and chunk_size must be at least 1, got \[0\] and 512"),
        (dict(chunk_size=0), "at least 1"),
        (dict(fprs=[1.0]), r"at least 0 and below 1, got \[1.0\]"),
    ],
)
def test_invalid_input(arguments, message):
    usable = dict(query=np.eye(2), gallery=np.ones((3, 2)), query_ids=[1, 2], gallery_ids=[1, 2, 3])
    assert retrieval_metrics(**usable)["num_skipped"] == 0
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**usable | arguments)


FEATURES = [[0.0, 1.0], [0.0, 0.9], [0.5, 0.5], [0.1, 1.0], [1.0, 0.0]]
IDS = [7, 7, 8, 7, 8]
IS_QUERY = [True, False, True, False, False]


@pytest.mark.parametrize("keep_in_memory", [True, False])
def test_metric_by_class(keep_in_memory):
    metric = RetrievalMAP(keep_in_memory=keep_in_memory)
    columns = {"references": IDS, "is_query": IS_QUERY, "cameras": [0, 0, 1, 1, 2]}
    expected = retrieval_metrics(
        np.float32(FEATURES)[[0, 2]], np.float32(FEATURES)[[1, 3, 4]], [7, 8], [7, 7, 8], [0, 1], [0, 1, 2]
    )
    for _ in range(2):
        assert metric.compute(predictions=FEATURES, **columns) == expected
    cosine = metric.compute(predictions=FEATURES, **columns, metric="cosine")
    assert cosine["threshold_at_fpr_1e-2"] != expected["threshold_at_fpr_1e-2"]


def test_metric_without_cameras_over_batches():
    metric = RetrievalMAP("images")
    features, ids = np.float32(FEATURES), np.array(IDS)
    for is_query in (True, False):
        metric.add_batch(predictions=features, references=ids, is_query=[is_query] * 5, images=range(5))
    assert metric.compute() == retrieval_metrics(
        features, features, ids, ids, query_images=range(5), gallery_images=range(5)
    )


def test_metric_rejects_ragged_features():
    with pytest.raises(ValueError, match="same number of features"):
        RetrievalMAP().compute(predictions=[[1.0], [1.0, 2.0]], references=[1, 1], is_query=[1, 0], cameras=[1, 2])


@pytest.mark.parametrize(("place", "sentence"), [(0, "that of query 1 is NaN"), (1, "that of gallery item 1 is NaN")])
def test_unknown_identities_are_rejected(place, sentence):
    features, ids = np.eye(3, dtype=np.float32), [np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])]
    ids[place][1] = np.nan
    with pytest.raises(ValueError, match=f"The identities must be known, but {sentence}"):
        retrieval_metrics(features, features, *ids)
