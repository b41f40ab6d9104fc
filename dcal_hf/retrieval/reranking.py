"""k-reciprocal re-ranking (Zhong et al., CVPR 2017) on neighbour lists, without a matrix of all pairs."""

import faiss
import numpy as np
import torch
from scipy import sparse

from ..errors import counted
from ..metrics.distances import FeatureDistances, as_tensor
from .faiss_errors import naming_index


# Rows and overlaps per chunk. They bound the memory of each step to some ten MB and keep its data close to the caches.
ROWS_PER_CHUNK = 1 << 12
OVERLAPS_PER_CHUNK = 1 << 18


class RerankedDistances:
    """Re-ranked distances from queries to gallery items, `(1 - lambda) * Jaccard + lambda * original`.

    The Jaccard distance is 1 for all but the few pairs whose neighbourhoods overlap, so only those are stored, and
    rows of the matrix are computed on demand. Implements [`~dcal_hf.metrics.Distances`]; created by [`rerank`].

    Args:
        original ([`~dcal_hf.metrics.FeatureDistances`]):
            The cosine distances before re-ranking.
        farthest (`np.ndarray` of shape `(queries,)`):
            Divisor of each query's squared Euclidean distances: the distance to its farthest image.
        similarity (`scipy.sparse.csr_array` of shape `(queries, gallery items)`):
            1 minus the Jaccard distance, stored where the neighbourhoods overlap.
        lambda_value (`float`):
            Weight of the original distance.
    """

    def __init__(
        self, original: FeatureDistances, farthest: np.ndarray, similarity: sparse.csr_array, lambda_value: float
    ):
        self.original, self.farthest, self.similarity = original, farthest, similarity
        self.lambda_value = lambda_value
        self.shape = original.shape

    def rows(self, queries: np.ndarray) -> np.ndarray:
        """Returns the re-ranked distances from some queries to every gallery item.

        Args:
            queries (`np.ndarray` of shape `(n,)` and an integer type):
                Indices of the queries.

        Returns:
            `np.ndarray` of shape `(n, gallery items)` and type float32.
        """
        rows = self.original.rows(queries)
        # |q - g|² = 2 (1 - q·g) where |q| = |g| = 1.
        rows *= (2 * self.lambda_value / self.farthest[queries])[:, None]
        rows += 1 - self.lambda_value
        overlaps = self.similarity[queries].tocoo()
        rows[overlaps.row, overlaps.col] -= (1 - self.lambda_value) * overlaps.data
        return rows


def rerank(
    query: np.ndarray | torch.Tensor,
    gallery: np.ndarray | torch.Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    index: str = "Flat",
) -> RerankedDistances:
    """Re-ranks the gallery by the overlap of the k-reciprocal neighbourhoods of queries and gallery items.

    Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", https://arxiv.org/abs/1701.08398.
    Public implementations differ. This one computes what the authors' Python code, the source of most published
    figures, computes for features of length 1:

    - The original distance is the squared Euclidean distance between L2-normalised features, divided, for each image,
      by its distance to the farthest image. The paper does not mention this division, and fast-reid omits it. The
      code of the authors and of torchreid squares its input and expects plain distances; given squared ones it ranks
      by the fourth power.
    - Neighbours are searched in queries and gallery together, and an image is its own first neighbour: the list for
      `k` has `k + 1` entries. fast-reid uses `k`. Local query expansion uses `k2` entries in all implementations,
      including the image itself.
    - The reciprocal set of a neighbour, for half of `k1`, is added if *more* than two thirds of it are shared; the
      paper says at least two thirds.

    Memory is three copies of the normalised features (one in the index), some hundred numbers per image and some
    thousand per query. Most of the time goes to two searches of the index with each image, on the CPU, in float32.

    Args:
        query, gallery (`np.ndarray` or `torch.Tensor` of shape `(queries, dim)` and `(gallery items, dim)`):
            The features. They are normalised here.
        k1 (`int`, *optional*, defaults to 20): Number of neighbours for the reciprocal sets.
        k2 (`int`, *optional*, defaults to 6):
            Number of neighbours, including the image, over which encodings are averaged; 1 disables averaging.
        lambda_value (`float`, *optional*, defaults to 0.3):
            Weight of the original distance, from 0 (Jaccard distance only) to 1.
        index (`str`, *optional*, defaults to `"Flat"`):
            A faiss factory string for the neighbour search. The default is exact; other indexes approximate.

    Returns:
        [`RerankedDistances`]: input of [`~dcal_hf.metrics.distance_metrics`]; its `rows` are the distances.

    Raises:
        ValueError: If an option is out of range or the features are invalid, or faiss cannot build the index.
    """
    if not 1 <= k2 <= k1 + 1 or not 0 <= lambda_value <= 1:
        raise ValueError(
            f"Re-ranking needs 1 <= k2 <= k1 + 1 and lambda_value from 0 to 1, got {k1=}, {k2=}, {lambda_value=}."
        )
    query, gallery = (as_tensor(part).to("cpu", torch.float32) for part in (query, gallery))
    original = FeatureDistances(query, gallery, "cosine")
    features = torch.cat([original.query, original.gallery]).numpy()
    with naming_index(index, f"search {counted(len(features), 'embedding')} by inner product"):
        neighbours, farthest = _search(features, min(k1 + 1, len(features)), index)
    reciprocal = _reciprocal(neighbours)
    half = _reciprocal(neighbours[:, :round(k1 / 2) + 1])
    encoding = _encode(features, _expand(reciprocal, half), farthest)
    if k2 > 1:
        encoding = _average(encoding, neighbours[:, :k2])
    similarity = _similarity(encoding[:len(query)], encoding[len(query):])
    return RerankedDistances(original, farthest[:len(query)], similarity, lambda_value)


def _search(features: np.ndarray, k: int, factory: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the `k` nearest images of each image, and its squared distance to the farthest one.

    The unit vector farthest from `x` is the one nearest to `-x`.
    """
    index = faiss.index_factory(features.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(features)
    index.add(features)
    neighbours = index.search(features, k)[1]
    opposite = [
        index.search(-features[start:start + ROWS_PER_CHUNK], 1)[0][:, 0]
        for start in range(0, len(features), ROWS_PER_CHUNK)
    ]
    # If all images are equal, their distances are rounding errors, and are not divided by 0.
    return neighbours, np.maximum(2 + 2 * np.concatenate(opposite), np.finfo(np.float32).eps)


def _matrix(neighbours: np.ndarray) -> sparse.csr_array:
    """Returns the matrix with a 1 where the column is in the row's list. An index of -1 stands for no neighbour."""
    rows, places = np.nonzero(neighbours >= 0)
    ones = np.ones(len(rows), dtype=np.float32)
    return sparse.csr_array((ones, (rows, neighbours[rows, places])), shape=(len(neighbours),) * 2)


def _reciprocal(neighbours: np.ndarray) -> sparse.csr_array:
    """R(i, k): the neighbours that have `i` among their own neighbours."""
    matrix = _matrix(neighbours)
    return matrix * matrix.T.tocsr()


def _expand(reciprocal: sparse.csr_array, half: sparse.csr_array) -> sparse.csr_array:
    """R*(i, k): R(i, k) joined with R(j, k/2) for each of its `j` with `|R(i, k) & R(j, k/2)| > 2/3 |R(j, k/2)|`."""
    common = reciprocal * (reciprocal @ half.T)
    common.data = (3 * common.data > 2 * half.sum(axis=1)[common.indices]).astype(np.float32)
    common.eliminate_zeros()
    return (reciprocal + common @ half).tocsr()


def _encode(features: np.ndarray, neighbourhoods: sparse.csr_array, farthest: np.ndarray) -> sparse.csr_array:
    """V(i, j): `exp(-d(i, j))` over the neighbourhood of `i`, each row divided by its sum."""
    pairs = neighbourhoods.tocoo()
    products = np.concatenate([
        np.einsum("nd,nd->n", features[pairs.row[start:start + ROWS_PER_CHUNK]],
                  features[pairs.col[start:start + ROWS_PER_CHUNK]])
        for start in range(0, pairs.nnz, ROWS_PER_CHUNK)
    ])
    weights = np.exp(-(2 - 2 * products) / farthest[pairs.row])
    weights /= np.bincount(pairs.row, weights)[pairs.row]
    return sparse.csr_array((weights.astype(np.float32), (pairs.row, pairs.col)), shape=pairs.shape)


def _average(encoding: sparse.csr_array, neighbours: np.ndarray) -> sparse.csr_array:
    """Local query expansion: the mean of the neighbours' encodings."""
    average = _matrix(neighbours) @ encoding
    average.data /= neighbours.shape[1]
    return average


def _similarity(query: sparse.csr_array, gallery: sparse.csr_array) -> sparse.csr_array:
    """1 minus the Jaccard distance, `sum min(V_q, V_g) / sum max(V_q, V_g)`, where it is not 0.

    Rows of V sum to 1, so the sum of maxima is 2 minus the sum of minima.
    """
    gallery_columns = gallery.tocsc()
    num_overlaps = np.concatenate([[0], np.cumsum(np.diff(gallery_columns.indptr)[query.indices])])[query.indptr]
    parts, start = [], 0
    while start < query.shape[0]:
        stop = max(start + 1, np.searchsorted(num_overlaps, num_overlaps[start] + OVERLAPS_PER_CHUNK, "right") - 1)
        overlap = _minimum_sums(query[start:stop], gallery_columns)
        overlap.data /= 2 - overlap.data
        parts.append(overlap)
        start = stop
    return sparse.vstack(parts, format="csr")


def _minimum_sums(query: sparse.csr_array, gallery_columns: sparse.csc_array) -> sparse.csr_array:
    """Sums `min(V_q, V_g)` over the columns stored in both, for each query row and each row of `gallery_columns`."""
    counts = np.diff(gallery_columns.indptr)[query.indices]
    query_entry = np.repeat(np.arange(query.nnz), counts)
    offset = np.arange(len(query_entry)) - np.repeat(np.cumsum(counts) - counts, counts)
    position = gallery_columns.indptr[query.indices][query_entry] + offset
    minima = np.minimum(query.data[query_entry], gallery_columns.data[position])
    row = np.repeat(np.arange(query.shape[0]), np.diff(query.indptr))[query_entry]
    shape = (query.shape[0], gallery_columns.shape[0])
    return sparse.coo_array((minima, (row, gallery_columns.indices[position])), shape=shape).tocsr()
