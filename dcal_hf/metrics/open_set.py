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


__all__ = ["NEW_INDIVIDUAL", "auroc", "open_set_accuracy", "open_set_metrics"]
