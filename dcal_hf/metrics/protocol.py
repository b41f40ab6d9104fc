"""The Market-1501 protocol: which gallery items count for a query (Zheng et al., ICCV 2015)."""

from collections.abc import Sequence

import numpy as np


JUNK_IDENTITY = -1

Column = np.ndarray | Sequence


class RetrievalProtocol:
    """Sorts the gallery items of each query into matches, items that do not match, and items that do not count.

    Items of identity -1 are junk and ignored for every query. Items with the query's identity *and* camera are ignored
    for that query, and so are items with the query's image. All others count; those with the query's identity are its
    matches. Identity 0 has no special rule: Market-1501's distractors have it and match no query because no query has
    it, and in MSMT17 it is a person.

    Indices are computed on demand, query by query, so that no array has an entry for each pair of query and item.

    Args:
        query_ids, gallery_ids (`np.ndarray` or `Sequence[int]` of shapes `(queries,)` and `(gallery items,)`):
            The identity of each image, numbered alike in both.
        query_cameras, gallery_cameras (`np.ndarray` or `Sequence`, *optional*):
            The camera of each image, numbered alike in both.
        query_images, gallery_images (`np.ndarray` or `Sequence`, *optional*):
            A name of each image, such as its path or row number, if the gallery may contain the query images.

    Attributes:
        kept, junk (`np.ndarray`): Ascending indices of the gallery items that are not junk, and of those that are.

    Raises:
        ValueError: If a column has a wrong length or unknown values (NaN), is given for one side only, or is text on
            one side and numbers on the other.
    """

    def __init__(
        self,
        query_ids: Column,
        gallery_ids: Column,
        query_cameras: Column | None = None,
        gallery_cameras: Column | None = None,
        *,
        query_images: Column | None = None,
        gallery_images: Column | None = None,
    ):
        shape = (len(query_ids), len(gallery_ids))
        self.query_ids, self.gallery_ids = paired_columns("identities", query_ids, gallery_ids, shape)
        self.kept = np.flatnonzero(self.gallery_ids != JUNK_IDENTITY)
        self.junk = np.flatnonzero(self.gallery_ids == JUNK_IDENTITY)
        self._same_identity = _occurrences(self.query_ids, self.gallery_ids, self.kept)
        self._cameras = None
        if query_cameras is not None or gallery_cameras is not None:
            self._cameras = paired_columns("cameras", query_cameras, gallery_cameras, shape)
        self._same_image = [self.kept[:0]] * shape[0]
        if query_images is not None or gallery_images is not None:
            self._same_image = _occurrences(*paired_columns("images", query_images, gallery_images, shape), self.kept)

    def matches(self, query: int) -> np.ndarray:
        """Ascending indices of the items to retrieve for a query."""
        return np.setdiff1d(self._same_identity[query], self.ignored(query), assume_unique=True)

    def ignored(self, query: int) -> np.ndarray:
        """Ascending indices of the items that do not count for a query, besides junk."""
        return np.union1d(self._same_camera(query), self._same_image[query])

    def counted(self, query: int) -> np.ndarray:
        """Ascending indices of the items that count for a query, whether they match or not."""
        return np.setdiff1d(self.kept, self.ignored(query), assume_unique=True)

    def why_no_match(self) -> str:
        """Explains why no query has a match, and what to do about it."""
        queries = range(len(self.query_ids))
        unknown = np.array([not len(items) for items in self._same_identity])
        own_camera = np.array([len(self._same_camera(query)) > 0 for query in queries]) & ~unknown
        own_image = ~unknown & ~own_camera
        reasons = [f"No query of {len(queries):,} can be scored."]
        if unknown.any():
            examples = ", ".join(map(str, np.unique(self.query_ids[unknown])[:3]))
            reasons.append(
                f"{unknown.sum()} have an identity that does not appear in the gallery (such as {examples}): queries "
                "and gallery must show the same individuals, under the same identity numbers."
            )
        if own_camera.any():
            reasons.append(
                f"{own_camera.sum()} have matches from their own camera only, which are ignored: give each image its "
                "true camera, or leave the cameras out if the data has none."
            )
        if own_image.any():
            reasons.append(
                f"{own_image.sum()} have no match except their own image: add a second image of the individual to the "
                "gallery."
            )
        return " ".join(reasons)

    def _same_camera(self, query: int) -> np.ndarray:
        """Ascending indices of the items with the query's identity and camera."""
        items = self._same_identity[query]
        if self._cameras is None:
            return items[:0]
        query_cameras, gallery_cameras = self._cameras
        return items[gallery_cameras[items] == query_cameras[query]]


def paired_columns(
    name: str, query: Column | None, gallery: Column | None, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a column of the queries and one of the gallery as arrays.

    Args:
        name (`str`): What the columns hold, for the error message.
        query, gallery (`np.ndarray` or `Sequence`, *optional*): The columns.
        shape (`tuple[int, int]`): Number of queries and number of gallery items.

    Raises:
        ValueError: If a column is missing, has a wrong length or contains NaN, is text on one side and numbers on
            the other, or has signed integers on one side and unsigned ones above int64 on the other.
    """
    if query is None or gallery is None:
        raise ValueError(f"The {name} of both the queries and the gallery are needed, got those of one only.")
    query, gallery = np.asarray(query), np.asarray(gallery)
    if query.shape != shape[:1] or gallery.shape != shape[1:]:
        raise ValueError(
            f"There must be {name} for {shape[0]} queries and {shape[1]} gallery items, "
            f"got arrays of shape {query.shape} and {gallery.shape}."
        )
    for place, column in (("query", query), ("gallery item", gallery)):
        if column.dtype.kind == "f" and np.isnan(column).any():
            raise ValueError(f"The {name} must be known, but that of {place} {np.isnan(column).argmax()} is NaN.")
    # NumPy compares them without an error, and an empty column has the type of numbers.
    kinds = {query.dtype.kind, gallery.dtype.kind}
    if len(query) and len(gallery) and "U" in kinds and kinds & set("iuf"):
        raise ValueError(
            f"The {name} must be text on both sides, or numbers on both, got {query.dtype} and {gallery.dtype}."
        )
    if kinds == {"i", "u"}:
        # NumPy would compare them as float64, in which integers above 2**53 are rounded.
        query, gallery = (_as_int64(name, column) for column in (query, gallery))
    return query, gallery


def _as_int64(name: str, column: np.ndarray) -> np.ndarray:
    """Converts integers, or raises a `ValueError` if one is too large."""
    largest = column.max(initial=0)
    if largest > np.iinfo(np.int64).max:
        raise ValueError(
            f"The {name} are signed on one side and unsigned on the other, and {largest} is too large for int64: give "
            "both sides as uint64, or number them anew."
        )
    return column.astype(np.int64)


def _occurrences(query: np.ndarray, gallery: np.ndarray, kept: np.ndarray) -> list[np.ndarray]:
    """For each entry of `query`, the ascending `kept` indices at which `gallery` has the same value."""
    order = kept[np.argsort(gallery[kept], kind="stable")]
    ordered = gallery[order]
    starts, stops = np.searchsorted(ordered, query, "left"), np.searchsorted(ordered, query, "right")
    return [order[start:stop] for start, stop in zip(starts, stops, strict=True)]


__all__ = ["JUNK_IDENTITY", "Column", "RetrievalProtocol", "paired_columns"]
