"""Distances between query and gallery features, computed a few rows at a time."""

from typing import Literal, Protocol

import numpy as np
import torch


DistanceMetric = Literal["euclidean", "cosine"]

# Every matrix product has this many rows, so a row's result does not depend on the rows computed with it.
ROWS_PER_PRODUCT = 512
COLUMNS_PER_PRODUCT = 4096


class Distances(Protocol):
    """Distances from queries to gallery items, computed on demand instead of stored.

    [`FeatureDistances`] and [`~dcal_hf.retrieval.reranking.RerankedDistances`] implement this protocol;
    [`distance_metrics`] scores them.

    Attributes:
        shape (`tuple[int, int]`): Number of queries and number of gallery items.
    """

    shape: tuple[int, int]

    def rows(self, queries: np.ndarray) -> np.ndarray:
        """Returns the distances from some queries to every gallery item.

        Args:
            queries (`np.ndarray` of shape `(n,)` and an integer type):
                Indices of the queries.

        Returns:
            `np.ndarray` of shape `(n, gallery items)`: finite floating-point numbers, smaller for nearer items. The
            caller may modify the array.
        """


class FeatureDistances:
    """Distances between features: squared Euclidean, `|q|² + |g|² - 2 q·g`, or cosine, `1 - q·g / (|q| |g|)`.

    They are computed on the device of the features, in the wider of the two dtypes and at least in float32, also under
    autocast; TF32, where torch is set to use it, rounds their products. The distance of a pair is the same to the last
    bit whichever other queries are computed with it.

    Args:
        query (`np.ndarray` or `torch.Tensor` of shape `(queries, dim)`):
            The features of the queries.
        gallery (`np.ndarray` or `torch.Tensor` of shape `(gallery items, dim)`):
            The features of the gallery.
        metric (`"euclidean"` or `"cosine"`, *optional*, defaults to `"euclidean"`):
            The distance. `"euclidean"` gives squared distances, and `"cosine"` normalises a copy of the features.

    Raises:
        ValueError: If the features are not two non-empty matrices of the same width, a value is not finite or
            overflows when squared, or the metric is unknown.
    """

    def __init__(
        self,
        query: np.ndarray | torch.Tensor,
        gallery: np.ndarray | torch.Tensor,
        metric: DistanceMetric = "euclidean",
    ):
        query, gallery = as_tensor(query), as_tensor(gallery)
        if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1] or not query.numel():
            raise ValueError(
                "Query and gallery features must have shapes (queries, dim) and (gallery items, dim) with dim > 0 and "
                f"at least one query, got {tuple(query.shape)} and {tuple(gallery.shape)}."
            )
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f'The metric must be "euclidean" or "cosine", got {metric!r}.')
        dtype = torch.promote_types(torch.promote_types(query.dtype, gallery.dtype), torch.float32)
        self.query, self.gallery = query.to(dtype), gallery.to(dtype)
        self.shape = (len(query), len(gallery))
        query_norms, gallery_norms = _squared_norms("query", self.query), _squared_norms("gallery", self.gallery)
        if metric == "euclidean":
            self._query_offset, self._gallery_offset, self._factor = query_norms, gallery_norms, -2.0
        else:
            self.query = torch.nn.functional.normalize(self.query)
            self.gallery = torch.nn.functional.normalize(self.gallery)
            self._query_offset, self._gallery_offset = torch.ones_like(query_norms), torch.zeros_like(gallery_norms)
            self._factor = -1.0

    def rows(self, queries: np.ndarray) -> np.ndarray:
        """Returns the distances from some queries to every gallery item; see [`Distances`]."""
        indices = as_tensor(queries).to(self.query.device)
        rows = self.query.new_empty(len(indices), self.shape[1])
        for start in range(0, len(indices), ROWS_PER_PRODUCT):
            part = indices[start:start + ROWS_PER_PRODUCT]
            self._fill(rows[start:start + ROWS_PER_PRODUCT], part)
        return rows.cpu().numpy()

    def _fill(self, rows: torch.Tensor, indices: torch.Tensor) -> None:
        """Writes the distances of at most `ROWS_PER_PRODUCT` queries into `rows`."""
        query = self.query.new_zeros(ROWS_PER_PRODUCT, self.query.shape[1])
        query[:len(indices)] = self.query[indices]
        query_offset = self._query_offset[indices, None]
        with torch.autocast(query.device.type, enabled=False):
            for start in range(0, self.shape[1], COLUMNS_PER_PRODUCT):
                part = slice(start, start + COLUMNS_PER_PRODUCT)
                products = torch.addmm(self._gallery_offset[part], query, self.gallery[part].T, alpha=self._factor)
                torch.add(products[:len(indices)], query_offset, out=rows[:, part])


def as_tensor(features: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Returns features as a tensor without gradient.

    It shares memory with the input if torch can: with a contiguous and writable array in native byte order.
    """
    if isinstance(features, torch.Tensor):
        return features.detach()
    features = np.asarray(features)
    return torch.from_numpy(np.require(features, features.dtype.newbyteorder("="), "CW"))


def _squared_norms(name: str, features: torch.Tensor) -> torch.Tensor:
    """Returns the squared length of each row, or raises a `ValueError` if one is not finite."""
    with torch.autocast(features.device.type, enabled=False):
        norms = torch.einsum("nd,nd->n", features, features)
    if not norms.isfinite().all():
        row = norms.isfinite().int().argmin()
        raise ValueError(f"Features must be finite, but the squared length of {name} row {row} is {norms[row]}.")
    return norms
