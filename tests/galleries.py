"""Galleries of clustered embeddings, and the exact search results."""

import os
from pathlib import Path

import numpy as np

from dcal_hf.retrieval import GalleryIndex


N, D = 500, 16
MODEL = "dcal-0123456789abcdef"


def clustered(count: int = N, seed: int = 0) -> np.ndarray:
    """Embeddings in twenty clusters, not normalised."""
    numbers = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, D))
    return (centres[numbers.integers(0, 20, count)] + 0.5 * numbers.normal(size=(count, D))).astype(np.float32)


def table(count: int = N, start: int = 0) -> dict[str, list]:
    return {"name": [f"photo {start + i}" for i in range(count)], "number": list(range(start, start + count))}


def exact(queries: np.ndarray, gallery: np.ndarray, metric: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    if metric == "cosine":
        queries, gallery = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (queries, gallery))
        scores, order = queries @ gallery.T, -(queries @ gallery.T)
    else:
        scores = order = np.linalg.norm(queries[:, None] - gallery, axis=2)
    rows = order.argsort(axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def make(factory: str = "Flat", metric: str = "cosine", count: int = N, **options) -> GalleryIndex:
    return GalleryIndex.from_embeddings(
        clustered(count), table(count), model_id=MODEL, factory=factory, metric=metric, **options
    )


def visible(folder: Path) -> list[str]:
    """The content of a folder without the lock file."""
    return [name for name in os.listdir(folder) if name != ".gallery.lock"]


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    return np.mean([len(np.intersect1d(*pair)) / expected.shape[1] for pair in zip(found, expected)])
