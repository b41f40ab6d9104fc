import tracemalloc

import numpy as np
import pytest
import torch

import dcal_hf.retrieval.reranking as reranking
from dcal_hf.metrics import distance_metrics
from dcal_hf.retrieval.reranking import rerank


class MatrixDistances:
    def __init__(self, matrix):
        self.matrix, self.shape = matrix, matrix.shape

    def rows(self, queries):
        return self.matrix[queries]


def dense_rerank(query, gallery, k1=20, k2=6, lambda_value=0.3):
    """Reference implementation: full matrices in double precision, neighbourhoods as sets."""
    features = np.concatenate([query, gallery]).astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    distances = ((features[:, None] - features[None]) ** 2).sum(-1)
    distances /= distances.max(axis=1, keepdims=True)
    order = distances.argsort(axis=1)
    lists = {k: [set(row[:k + 1].tolist()) for row in order] for k in (k1, int(np.around(k1 / 2)))}

    def reciprocal(i, k):
        return {j for j in lists[k][i] if i in lists[k][j]}

    encoding = np.zeros_like(distances)
    for i in range(len(features)):
        base = reciprocal(i, k1)
        neighbourhood = set(base)
        for j in base:
            candidates = reciprocal(j, int(np.around(k1 / 2)))
            if len(candidates & base) > 2 / 3 * len(candidates):
                neighbourhood |= candidates
        members = list(neighbourhood)
        encoding[i, members] = np.exp(-distances[i, members]) / np.exp(-distances[i, members]).sum()
    encoding = np.stack([encoding[order[i, :k2]].mean(axis=0) for i in range(len(features))])
    of_query, of_gallery = encoding[:len(query), None], encoding[None, len(query):]
    jaccard = 1 - np.minimum(of_query, of_gallery).sum(-1) / np.maximum(of_query, of_gallery).sum(-1)
    return (1 - lambda_value) * jaccard + lambda_value * distances[:len(query), len(query):]


def clustered(seed, queries=25, items=90, identities=8, noise=0.6, dim=16):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(identities, dim))
    ids = generator.integers(0, identities, queries), generator.integers(0, identities, items)
    return *((centres[part] + noise * generator.normal(size=(len(part), dim))).astype(np.float32) for part in ids), ids


def rows_of(distances):
    return distances.rows(np.arange(distances.shape[0]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.2, 0.6, 100.0])
def test_equals_dense_formula(seed, noise):
    query, gallery, _ = clustered(seed, noise=noise)
    result = rows_of(rerank(query, gallery))
    assert result.dtype == np.float32 and result.shape == (25, 90)
    np.testing.assert_allclose(result, dense_rerank(query, gallery), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(k1=5, k2=3), dict(k1=7, k2=1), dict(k1=200, k2=6), dict(k1=1, k2=2), dict(lambda_value=0.0),
        dict(lambda_value=1.0), dict(k1=10, k2=4, lambda_value=0.7),
    ],
)
def test_options_equal_dense_formula(options):
    query, gallery, _ = clustered(7)
    result = rows_of(rerank(query, gallery, **options))
    np.testing.assert_allclose(result, dense_rerank(query, gallery, **options), rtol=0, atol=1e-5)
    assert np.abs(result - dense_rerank(query, gallery)).max() > 1e-3


def test_gallery_of_three():
    query, gallery, _ = clustered(1, queries=4, items=3)
    np.testing.assert_allclose(rows_of(rerank(query, gallery)), dense_rerank(query, gallery), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [4, 8])
def test_equal_features_are_all_at_one_distance(dim):
    """A collapsed model: the distance to the farthest image, by which distances are divided, is 0."""
    distances = rerank(np.ones((2, dim), np.float32), np.ones((4, dim), np.float32))
    rows = rows_of(distances)
    assert np.isfinite(rows).all() and np.ptp(rows) < 1e-5
    # Ties go to the lower index: the matches have the ranks 2 and 4.
    assert distance_metrics(distances, [0, 1], [5, 0, 5, 1])["map"] == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_metrics_after_reranking_are_those_of_the_dense_matrix():
    query, gallery, ids = clustered(2, noise=1.1)
    result = distance_metrics(rerank(query, gallery), *ids)
    expected = distance_metrics(MatrixDistances(dense_rerank(query, gallery)), *ids)
    assert result == pytest.approx(expected, abs=1e-5)
    before = distance_metrics(rerank(query, gallery, lambda_value=1.0), *ids)
    assert before["map"] + 0.01 < result["map"] < 1


def test_chunks_do_not_change_the_result(monkeypatch):
    query, gallery, _ = clustered(3)
    unchunked = rerank(query, gallery)
    monkeypatch.setattr(reranking, "ROWS_PER_CHUNK", 16)
    monkeypatch.setattr(reranking, "OVERLAPS_PER_CHUNK", 1000)
    pieces = []
    monkeypatch.setattr(reranking, "_minimum_sums", lambda *both, make=reranking._minimum_sums: (
        pieces.append(both[0].shape[0]), make(*both))[1])
    chunked = rerank(query, gallery)
    assert 1 < len(pieces) <= sum(pieces) == 25
    assert np.array_equal(rows_of(chunked), rows_of(unchunked))
    assert np.array_equal(chunked.rows(np.array([20, 4])), rows_of(unchunked)[[20, 4]])


def test_any_index_and_any_features():
    query, gallery, _ = clustered(4)
    expected = rows_of(rerank(query, gallery))
    scaled = torch.tensor(3 * query, dtype=torch.float64, requires_grad=True), torch.tensor(gallery / 5)
    np.testing.assert_allclose(rows_of(rerank(*scaled)), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(rows_of(rerank(query, gallery, index="HNSW32")), expected, rtol=0, atol=1e-5)


def test_no_matrix_of_all_pairs_is_created():
    query, gallery, _ = clustered(5, queries=1000, items=3000, identities=400, noise=0.2)
    rerank(query[:50], gallery[:50])
    tracemalloc.start()
    distances = rerank(query, gallery)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert distances.similarity.nnz < 0.1 * 1000 * 3000
    assert peak < 4 * 4000**2 / 2


@pytest.mark.parametrize("options", [dict(k2=0), dict(k1=3, k2=5), dict(lambda_value=1.1), dict(lambda_value=-0.1)])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match="needs 1 <= k2 <= k1"):
        rerank(np.eye(4), np.eye(4), **options)
