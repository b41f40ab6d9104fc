"""Splits identities into train, query and gallery, and checks that queries have matches."""

from collections.abc import Hashable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from ..errors import counted
from ..metrics.protocol import RetrievalProtocol
from .splits import stratified_split


def matched(
    query_ids: Sequence[int],
    query_views: Sequence[Hashable],
    gallery_ids: Sequence[int],
    gallery_views: Sequence[Hashable],
) -> np.ndarray:
    """Which queries have a match in the gallery, by the [`RetrievalProtocol`] with the views as cameras.

    Args:
        query_ids (sequence of `int`): (Q,) identities.
        query_views (sequence): (Q,) cameras; without cameras, a key unique to each image.
        gallery_ids (sequence of `int`): (G,) identities.
        gallery_views (sequence): (G,) as `query_views`.

    Returns:
        `np.ndarray` of shape `(Q,)`, bool.
    """
    protocol = RetrievalProtocol(query_ids, gallery_ids, query_views, gallery_views)
    return np.array([len(protocol.matches(query)) > 0 for query in range(len(query_ids))], dtype=bool)


def split_by_identity(
    identities: Sequence[int], views: Sequence[Hashable], fraction: float, seed: int, where: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """Holds out a random fraction of the identities, stratified by whether they have two views.

    Args:
        identities (sequence of `int`): (N,) identities.
        views (sequence): (N,) as in [`matched`].
        fraction (`float`): Fraction of the identities to hold out, in (0, 1).
        seed (`int`): The same seed and identities give the same split.
        where (`str` or `Path`): The data set, for the error message.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: ascending int64 indices of the training images and of the held-out images.

    Raises:
        ValueError: if fewer than two identities have two views.
    """
    identities = np.asarray(identities)
    findable = matched(identities, views, identities, views)
    known, first = np.unique(identities, return_index=True)
    if findable[first].sum() < 2:
        raise ValueError(
            f"{where} cannot be split by identity: it has {counted(len(known), 'identity', 'identities')}, "
            f"{findable[first].sum()} of them with two images that can be compared (of two cameras, if cameras are "
            "given), but train and the held-out part need one such identity each; add images"
        )
    _, chosen = stratified_split(findable[first], fraction, seed)
    held_out = np.isin(identities, known[chosen])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def choose_queries(
    identities: Sequence[int], views: Sequence[Hashable], fraction: float, seed: int, where: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses a fraction of the images of every identity as queries, and keeps those that have a match.

    Args:
        identities (sequence of `int`): (N,) identities.
        views (sequence): (N,) as in [`matched`].
        fraction (`float`): Fraction of the images of an identity, in (0, 1); at least one image, and not all.
        seed (`int`): The same seed and arguments give the same choice.
        where (`str` or `Path`): The data set, for the error message.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: ascending int64 indices of the queries and of the gallery, N in total.

    Raises:
        ValueError: if no identity has two views.
    """
    identities, views = np.asarray(identities), np.asarray(views)
    gallery, query = stratified_split(identities, fraction, seed)
    found = matched(identities[query], views[query], identities[gallery], views[gallery])
    if not found.any():
        raise ValueError(
            f"{where} has no possible query: none of the held-out identities has two images that can be "
            "compared (of two cameras, where cameras are given); add images"
        )
    return query[found], np.sort(np.concatenate([gallery, query[~found]]))


def check_matches(
    query_ids: Sequence[int],
    query_views: Sequence[Hashable],
    gallery_ids: Sequence[int],
    gallery_views: Sequence[Hashable],
    has_cameras: bool,
    where: str | Path,
) -> None:
    """Checks that at least one query has a match.

    Raises:
        ValueError: if none has; the message says why, and what to do.
    """
    if matched(query_ids, query_views, gallery_ids, gallery_views).any():
        return
    if set(query_ids).isdisjoint(gallery_ids):
        reason = (
            f"its queries are of identities {_some(query_ids)}, its gallery of {_some(gallery_ids)}. Use the "
            "same identities in both, or remove query and gallery to have them created from train"
        )
    elif has_cameras:
        reason = (
            "all gallery images of the queries' identities come from the query's own camera, which the protocol "
            "ignores. Add images from other cameras, or leave the cameras out, so that no image is ignored"
        )
    else:
        reason = (
            "the only gallery image of each query's identity is the query itself. Add other images of these identities"
        )
    raise ValueError(f"no query identity of {where} appears in its gallery: {reason}")


def _some(identities: Sequence[int]) -> str:
    distinct = sorted(set(identities))
    return ", ".join(map(str, islice(distinct, 3))) + (", ..." if len(distinct) > 3 else "")


__all__ = ["check_matches", "choose_queries", "matched", "split_by_identity"]
