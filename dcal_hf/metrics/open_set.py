"""Open-set identification: assigns an image to a known individual, or to a new one."""

import math

import numpy as np
import torch

from .distances import FeatureDistances
from .protocol import JUNK_IDENTITY, Column, paired_columns
from .retrieval import QUERIES_PER_CHUNK


NEW_INDIVIDUAL = -1


def open_set_metrics(
    query: np.ndarray | torch.Tensor,
    gallery: np.ndarray | torch.Tensor,
    query_ids: Column,
    gallery_ids: Column,
    threshold: float,
    *,
    chunk_size: int = QUERIES_PER_CHUNK,
) -> dict[str, float | int]:
    """Predicts for each query the identity of the nearest gallery image, or "new" if it is too far away.

    An individual is known if the gallery contains it. The query images themselves must not be in the gallery.

    Args:
        query (`np.ndarray` or `torch.Tensor` of shape `(queries, dim)`):
            The features of the queries.
        gallery (`np.ndarray` or `torch.Tensor` of shape `(gallery items, dim)`):
            The features of the gallery. Distances are computed on the device of the features.
        query_ids, gallery_ids (`np.ndarray` or `Sequence[int]`):
            The identity of each image; the same individual has the same number in both. Gallery items of identity -1
            are junk and dropped.
        threshold (`float`):
            Euclidean distance; a query is predicted "new" unless an item is nearer.
        chunk_size (`int`, *optional*, defaults to 512):
            How many rows of distances are held in memory. It does not affect the result.

    Returns:
        `dict[str, float | int]`: the metrics of [`open_set_accuracy`], and

        - `auroc_new`: [`auroc`] of the distance to the nearest item as a novelty score; independent of the threshold.
        - `num_known`, `num_new`: how many queries show a known and a new individual.

    Raises:
        ValueError: If the features or columns are invalid, or the queries show no known or no new individual.
    """
    distances = FeatureDistances(query, gallery)
    query_ids, gallery_ids = paired_columns("identities", query_ids, gallery_ids, distances.shape)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
    junk = gallery_ids == JUNK_IDENTITY
    if junk.all():
        raise ValueError("The gallery shows no individual: it is empty, or all of its items are junk (identity -1).")
    nearest_items, nearest = _nearest(distances, junk, chunk_size)
    predicted = np.where(nearest < threshold, gallery_ids[nearest_items], NEW_INDIVIDUAL)
    is_new = ~np.isin(query_ids, gallery_ids[~junk])
    return open_set_accuracy(predicted, query_ids, gallery_ids[~junk]) | {
        "auroc_new": auroc(nearest, is_new),
        "num_known": int((~is_new).sum()),
        "num_new": int(is_new.sum()),
    }


def _nearest(distances: FeatureDistances, junk: np.ndarray, chunk_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The index of each query's nearest item that is not junk, and the Euclidean distance to it, float64."""
    items, nearest = [], []
    for start in range(0, distances.shape[0], chunk_size):
        rows = distances.rows(np.arange(start, min(start + chunk_size, distances.shape[0])))
        rows[:, junk] = np.inf
        items.append(rows.argmin(axis=1))
        nearest.append(rows.min(axis=1))
    # In double precision, the square root does not make different distances equal.
    return np.concatenate(items), np.sqrt(np.maximum(np.concatenate(nearest, dtype=np.float64), 0.0))


def gallery_threshold(
    gallery: np.ndarray | torch.Tensor,
    gallery_ids: Column,
    gallery_cameras: Column | None = None,
    *,
    chunk_size: int = QUERIES_PER_CHUNK,
) -> float:
    """A threshold for [`open_set_metrics`] that is chosen on the gallery alone, without labels of queries.

    Each gallery image is asked for twice: as an image of a known individual, in the gallery without it and without
    images of the same individual by the same camera, and as one of a new individual, in the gallery without that
    individual. The threshold is the smallest one with the largest geometric mean of the two accuracies, each averaged
    over individuals, as in [`open_set_accuracy`].

    A model that was trained on the gallery keeps its individuals further apart than new ones, so that the threshold
    may be too small.

    Args:
        gallery (`np.ndarray` or `torch.Tensor` of shape `(gallery items, dim)`):
            The features of the gallery.
        gallery_ids (`np.ndarray` or `Sequence[int]`):
            The identity of each image. Items of identity -1 are junk and dropped.
        gallery_cameras (`np.ndarray` or `Sequence`, *optional*):
            The camera of each image.
        chunk_size (`int`, *optional*, defaults to 512):
            How many rows of distances are held in memory. It does not affect the result.

    Returns:
        `float`: a Euclidean distance.

    Raises:
        ValueError: If there are fewer than two individuals, or none has two images that can be compared.
    """
    ids = np.asarray(gallery_ids)
    kept = ids != JUNK_IDENTITY
    ids, gallery = ids[kept], gallery[kept]
    cameras = None if gallery_cameras is None else np.asarray(gallery_cameras)[kept]
    distances = FeatureDistances(gallery, gallery)
    as_known, as_new = [], []
    for start in range(0, len(ids), chunk_size):
        chosen = np.arange(start, min(start + chunk_size, len(ids)))
        rows = distances.rows(chosen)
        same = ids[chosen, None] == ids
        apart = chosen[:, None] != np.arange(len(ids)) if cameras is None else cameras[chosen, None] != cameras
        as_known.append(np.where(same & apart, rows, np.inf).min(axis=1))
        as_new.append(np.where(same, np.inf, rows).min(axis=1))
    as_known, as_new = (np.sqrt(np.maximum(np.concatenate(x, dtype=np.float64), 0.0)) for x in (as_known, as_new))
    is_findable = np.isfinite(as_known)
    if not is_findable.any() or not np.isfinite(as_new).all():
        raise ValueError(
            "A threshold can be chosen on a gallery of at least two individuals, one of which has two images that can "
            "be compared (of two cameras, where cameras are given)."
        )
    is_found = is_findable & (as_known < as_new)
    # At a threshold of one of these distances the item itself is just not accepted.
    thresholds = np.unique(as_new)
    baks = _share_below(as_known[is_found], _individual_weights(ids, is_findable)[is_found], thresholds)
    baus = 1 - _share_below(as_new, _individual_weights(ids, np.ones(len(ids), dtype=bool)), thresholds)
    return float(thresholds[np.argmax(baks * baus)])


def _individual_weights(ids: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Weights (n,) of a mean over individuals of the means over their counted images."""
    individuals, rows = np.unique(ids, return_inverse=True)
    counts = np.bincount(rows, weights=counted, minlength=len(individuals))
    return counted / np.maximum(counts[rows], 1) / np.count_nonzero(counts)


def _share_below(distances: np.ndarray, weights: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The total weight of the distances (n,) below each threshold (m,)."""
    order = np.argsort(distances, kind="stable")
    totals = np.concatenate([[0.0], np.cumsum(weights[order])])
    return totals[np.searchsorted(distances[order], thresholds, side="left")]


def open_set_accuracy(predicted: Column, identities: Column, known: Column) -> dict[str, float]:
    """Accuracy on known and on new individuals, averaged over individuals.

    These are the measures of AnimalCLEF 2025 (Adam et al., CEUR-WS 4038).

    Args:
        predicted (`np.ndarray` or `Sequence[int]` of shape `(n,)`):
            The predicted identity of each image; -1 for a new individual.
        identities (`np.ndarray` or `Sequence[int]` of shape `(n,)`):
            The true identity of each image; new individuals have distinct identities, too.
        known (`np.ndarray` or `Sequence[int]`):
            The known identities, in any order, with or without repetitions. All others are new.

    Returns:
        `dict[str, float]`: each from 0 to 1,

        - `baks`: balanced accuracy on known samples, the mean over the known individuals of the share of their images
          that are predicted as that individual.
        - `baus`: balanced accuracy on unknown samples, the mean over the new individuals of the share of their images
          that are predicted as new.
        - `baks_baus`: their geometric mean.

    Raises:
        ValueError: If no image shows a known individual or none a new one, the shapes differ, or identities are not
            integers.
    """
    predicted, identities = np.asarray(predicted), np.asarray(identities)
    if identities.ndim != 1 or predicted.shape != identities.shape:
        raise ValueError(
            "Predicted and true identities must have the same shape (n,), "
            f"got {predicted.shape} and {identities.shape}."
        )
    if not {predicted.dtype.kind, identities.dtype.kind} <= set("iu"):
        raise ValueError(
            f"Identities must be integers, -1 for a new individual, got arrays of type {predicted.dtype} and "
            f"{identities.dtype}."
        )
    is_known = np.isin(identities, known)
    if is_known.all() or not is_known.any():
        raise ValueError(
            "Open-set accuracy needs images of known and of new individuals, "
            f"got {is_known.sum()} of known and {(~is_known).sum()} of new ones."
        )
    correct = predicted == np.where(is_known, identities, NEW_INDIVIDUAL)
    individuals, rows, counts = np.unique(identities, return_inverse=True, return_counts=True)
    accuracies = np.bincount(rows, weights=correct) / counts
    known_individuals = np.isin(individuals, known)
    baks, baus = (float(accuracies[chosen].mean()) for chosen in (known_individuals, ~known_individuals))
    return {"baks": baks, "baus": baus, "baks_baus": math.sqrt(baks * baus)}


def auroc(scores: Column, positive: Column) -> float:
    """Area under the ROC curve: the probability that a positive scores higher than a negative, ties counting half.

    It is computed exactly, as the Mann-Whitney U statistic.

    Args:
        scores (`np.ndarray` or `Sequence[float]` of shape `(n,)`): Higher scores mean more likely positive.
        positive (`np.ndarray` or `Sequence[bool]` of shape `(n,)`): Which examples are positive.

    Returns:
        `float`: the area, from 0 to 1; 0.5 for uninformative scores.

    Raises:
        ValueError: If there is no positive or no negative, a score is NaN, or the shapes differ.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, dtype=bool)
    if scores.ndim != 1 or scores.shape != positive.shape or np.isnan(scores).any():
        raise ValueError(
            f"AUROC needs scores, none of them NaN, and labels of the same shape (n,), got {scores.shape} and "
            f"{positive.shape} with {np.isnan(scores).sum()} NaN."
        )
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        raise ValueError(f"AUROC needs positives and negatives, got {num_positive} and {num_negative}.")
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Twice the mean rank of equal scores, from 1: integers, so that the sum is exact.
    double_ranks = 2 * np.cumsum(counts) - counts + 1
    double_wins = int(double_ranks[places][positive].sum()) - num_positive * (num_positive + 1)
    return double_wins / (2 * num_positive * num_negative)


__all__ = ["NEW_INDIVIDUAL", "auroc", "gallery_threshold", "open_set_accuracy", "open_set_metrics"]
