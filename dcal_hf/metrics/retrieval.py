"""Exact retrieval metrics in bounded memory, without sorting a row: mAP, CMC, mINP, MAP@R, the verification ROC."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from .distances import DistanceMetric, Distances, FeatureDistances
from .protocol import Column, RetrievalProtocol, paired_columns


DEFAULT_RANKS = (1, 5, 10)
DEFAULT_FPRS = (1e-4, 1e-3, 1e-2)
QUERIES_PER_CHUNK = 512
# For fewer distances than this, shrinking a selection costs more time than the memory is worth.
SELECTION_SLACK = 1 << 20


def retrieval_metrics(
    query: np.ndarray | torch.Tensor,
    gallery: np.ndarray | torch.Tensor,
    query_ids: Column,
    gallery_ids: Column,
    query_cameras: Column | None = None,
    gallery_cameras: Column | None = None,
    *,
    query_images: Column | None = None,
    gallery_images: Column | None = None,
    metric: DistanceMetric = "euclidean",
    ranks: Sequence[int] = DEFAULT_RANKS,
    fprs: Sequence[float] = DEFAULT_FPRS,
    chunk_size: int = QUERIES_PER_CHUNK,
) -> dict[str, float | int]:
    """Scores the ranking of the gallery by the distance of its features from those of each query.

    Which gallery items count for a query is the Market-1501 protocol; see [`RetrievalProtocol`]. A query without a
    match among them is not scored. Ties go to the lower gallery index. Omit the cameras if the data has none. To
    search a set with each of its own images, name the images:

    ```python
    >>> rows = np.arange(len(features))
    >>> retrieval_metrics(features, features, ids, ids, query_images=rows, gallery_images=rows)
    ```

    Args:
        query, gallery (`np.ndarray` or `torch.Tensor` of shape `(queries, dim)` and `(gallery items, dim)`):
            The features. Distances are computed on their device.
        query_ids, gallery_ids, query_cameras, gallery_cameras, query_images, gallery_images:
            As in [`RetrievalProtocol`].
        metric (`"euclidean"` or `"cosine"`, *optional*): Both give the same ranking for features of length 1.
        ranks, fprs, chunk_size: As in [`distance_metrics`].

    Returns:
        `dict[str, float | int]`: all but the verification ROC and the counts are means over the scored queries.

        - `map`: mean average precision, from the precision at each match ("step"), as papers report it.
        - `map_trapezoid`: each precision averaged with the previous rank's, as the Market-1501 authors do; lower.
        - `minp`: mean inverse negative penalty, number of matches over the rank of the last one (arXiv 2001.04193).
        - `r_precision`: the share of matches among the first R items, R being the number of the query's matches.
        - `map_at_r`: MAP@R, the sum of the precision at each match among the first R items, divided by R (Musgrave et
          al., ECCV 2020, section 3.2).
        - `rank1`, `rank5`, `rank10`: CMC, the share of queries with a match among the first items.
        - `tpr_at_fpr_1e-4`, ...: the share of matching pairs below the threshold, over the pairs of scored queries.
        - `threshold_at_fpr_1e-4`, ...: the largest distance (Euclidean, not squared, or cosine) such that the share
          of non-matching pairs *below* it does not exceed the rate; infinite if all pairs can be accepted.
        - `num_queries`, `num_skipped`: the number of queries, and how many of them could not be scored.

    Raises:
        ValueError: If no query can be scored, the features or columns are invalid, or an option is out of range.
    """
    metrics = distance_metrics(
        FeatureDistances(query, gallery, metric), query_ids, gallery_ids, query_cameras, gallery_cameras,
        query_images=query_images, gallery_images=gallery_images, ranks=ranks, fprs=fprs, chunk_size=chunk_size,
    )
    if metric == "euclidean":
        for name in (name for name in metrics if name.startswith("threshold")):
            metrics[name] = math.sqrt(max(metrics[name], 0.0))
    return metrics


def distance_metrics(
    distances: Distances,
    query_ids: Column,
    gallery_ids: Column,
    query_cameras: Column | None = None,
    gallery_cameras: Column | None = None,
    *,
    query_images: Column | None = None,
    gallery_images: Column | None = None,
    ranks: Sequence[int] = DEFAULT_RANKS,
    fprs: Sequence[float] = DEFAULT_FPRS,
    chunk_size: int = QUERIES_PER_CHUNK,
) -> dict[str, float | int]:
    """Scores a ranking by any [`Distances`], such as re-ranked ones.

    The rank of a match is found by counting the items before it, so no row is sorted, while a thread computes the next
    rows. Memory holds two chunks of rows, and for the ROC about four numbers per negative accepted at the largest
    rate. With a few dozen matches per query most of the time goes to the distances; counting grows with the matches.

    Args:
        distances ([`Distances`]):
            The distances from queries to gallery items. The thresholds have their unit.
        query_ids, gallery_ids, query_cameras, gallery_cameras, query_images, gallery_images:
            As in [`RetrievalProtocol`].
        ranks (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`):
            The ranks at which the CMC curve is evaluated.
        fprs (`Sequence[float]`, *optional*, defaults to `(1e-4, 1e-3, 1e-2)`):
            The false positive rates, below 1, at which the verification ROC is evaluated.
        chunk_size (`int`, *optional*, defaults to 512):
            Rows of distances per chunk. The result does not depend on it.

    Returns:
        `dict[str, float | int]`: the metrics of [`retrieval_metrics`].

    Raises:
        ValueError: If no query can be scored, a column is invalid, or an option is out of range.

    Example:

    ```python
    >>> distance_metrics(rerank(query, gallery), query_ids, gallery_ids, query_cameras, gallery_cameras)
    ```
    """
    _check_options(ranks, fprs, chunk_size)
    query_ids, gallery_ids = paired_columns("identities", query_ids, gallery_ids, distances.shape)
    protocol = RetrievalProtocol(
        query_ids, gallery_ids, query_cameras, gallery_cameras,
        query_images=query_images, gallery_images=gallery_images,
    )
    metrics, num_scored = _score(distances, protocol, ranks, fprs, chunk_size)
    return metrics | {"num_queries": distances.shape[0], "num_skipped": distances.shape[0] - num_scored}


def _score(
    distances: Distances, protocol: RetrievalProtocol, ranks: Sequence[int], fprs: Sequence[float], chunk_size: int
) -> tuple[dict[str, float], int]:
    """The metrics of the queries that have a match, and the number of these queries."""
    matches = [protocol.matches(query) for query in range(distances.shape[0])]
    ignored = [protocol.ignored(query) for query in range(distances.shape[0])]
    scored = np.flatnonzero([len(items) > 0 for items in matches])
    if not len(scored):
        raise ValueError(protocol.why_no_match())
    num_negatives = sum(len(protocol.kept) - len(matches[query]) - len(ignored[query]) for query in scored)
    allowed = [num_accepted(fpr, num_negatives) for fpr in fprs]
    nearest_negatives = Smallest(max(allowed, default=0) + 1)
    match_ranks, match_distances = [], []
    for query, row in zip(scored, _rows(distances, scored, chunk_size), strict=True):
        row[protocol.junk] = row[ignored[query]] = np.inf
        match_ranks.append(_match_ranks(row, matches[query]))
        match_distances.append(row[matches[query]])
        row[matches[query]] = np.inf
        nearest_negatives.add(row)
    verification = _verification_metrics(np.concatenate(match_distances), nearest_negatives.values(), fprs, allowed)
    return _rank_metrics(match_ranks, ranks) | verification, len(scored)


def _check_options(ranks: Sequence[int], fprs: Sequence[float], chunk_size: int) -> None:
    if min(ranks, default=1) < 1 or chunk_size < 1:
        raise ValueError(f"Ranks and chunk_size must be at least 1, got {list(ranks)} and {chunk_size}.")
    if not all(0 <= fpr < 1 for fpr in fprs):
        raise ValueError(f"False positive rates must be at least 0 and below 1, got {list(fprs)}.")


def _rows(distances: Distances, queries: np.ndarray, chunk_size: int) -> Iterator[np.ndarray]:
    """Yields the row of each query while a thread computes the next chunk."""
    pending: deque[Future] = deque()
    with ThreadPoolExecutor(max_workers=1) as worker:
        for start in range(0, len(queries), chunk_size):
            pending.append(worker.submit(distances.rows, queries[start:start + chunk_size]))
            if len(pending) > 1:
                yield from pending.popleft().result()
        yield from pending.popleft().result()


def _match_ranks(row: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """Ascending ranks, from 1, of the matches in the order of distance and then index."""
    before = [np.count_nonzero(row[:i] <= row[i]) + np.count_nonzero(row[i:] < row[i]) for i in matches]
    return np.sort(before) + 1


def _rank_metrics(match_ranks: list[np.ndarray], cmc_ranks: Sequence[int]) -> dict[str, float]:
    """Averages the metrics over the scored queries, each with match ranks `r_1 < ... < r_n`."""
    step, trapezoid, penalty, r_precision, map_at_r = [], [], [], [], []
    for ranks in match_ranks:
        hits = np.arange(1, len(ranks) + 1)
        precision = hits / ranks
        # At the rank before match i there are i - 1 hits among r_i - 1 items; before the first item precision is 1.
        precision_before = np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)
        step.append(precision.mean())
        trapezoid.append((precision.mean() + precision_before.mean()) / 2)
        penalty.append(precision[-1])
        among_first = ranks <= len(ranks)
        r_precision.append(among_first.mean())
        map_at_r.append(np.where(among_first, precision, 0.0).mean())
    first = np.array([ranks[0] for ranks in match_ranks])
    columns = {"map": step, "map_trapezoid": trapezoid, "minp": penalty}
    columns |= {"r_precision": r_precision, "map_at_r": map_at_r}
    means = {name: float(np.mean(column)) for name, column in columns.items()}
    return means | {f"rank{rank}": float((first <= rank).mean()) for rank in cmc_ranks}


def num_accepted(rate: float, num_pairs: int) -> int:
    """The largest number of pairs whose share of all pairs does not exceed a rate below 1."""
    # Rounded first, because 0.29 * 100 is slightly below 29 in floating point. That must not accept all pairs.
    return min(math.floor(round(rate * num_pairs, 6)), max(num_pairs - 1, 0))


def _verification_metrics(
    matching: np.ndarray, nearest_negatives: np.ndarray, fprs: Sequence[float], allowed: Sequence[int]
) -> dict[str, float]:
    """True positive rate and threshold with at most `allowed` negatives below the threshold."""
    metrics = {}
    for fpr, count in zip(fprs, allowed, strict=True):
        threshold = float(nearest_negatives[count]) if count < len(nearest_negatives) else math.inf
        name = f"fpr_{np.format_float_scientific(fpr, trim='-', exp_digits=1)}"
        metrics[f"tpr_at_{name}"] = float((matching < threshold).mean())
        metrics[f"threshold_at_{name}"] = threshold
    return metrics


class Smallest:
    """Selects the `count` smallest finite numbers of a stream, storing little more than twice as many."""

    def __init__(self, count: int):
        self.count = count
        self._parts: list[np.ndarray] = []
        self._size = 0
        self._bound = np.inf

    def add(self, numbers: np.ndarray) -> None:
        """Adds numbers to the stream."""
        below = numbers[numbers < self._bound]
        self._parts.append(below)
        self._size += len(below)
        if self._size > 2 * self.count + SELECTION_SLACK:
            selected = np.concatenate(self._parts)
            selected.partition(self.count - 1)
            self._parts = [selected[:self.count].copy()]
            self._size = self.count
            self._bound = selected[self.count - 1]

    def values(self) -> np.ndarray:
        """Returns the selected numbers in ascending order, fewer than `count` if the stream was shorter."""
        return np.sort(np.concatenate(self._parts))[:self.count]
