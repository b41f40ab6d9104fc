"""Evaluation protocols of re-identification: how images are divided into train, query and gallery."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from ..errors import counted
from ..metrics.protocol import JUNK_IDENTITY
from .reid_splits import choose_queries, split_by_identity
from .splits import stratified_split


logger = logging.getLogger(__name__)

# Descriptions for the model card and the log.
PROTOCOLS = {
    "disjoint": "disjoint set: query and gallery have no individuals of train, unless the data set's own splits do",
    "closed_set": "closed set: the gallery is train, the queries are other images of the individuals in it",
    "open_set": "open set: the gallery is train, the queries show individuals in it and new ones",
    "time": "split by time: the gallery is train, the queries are from later days and may show new individuals",
}


@dataclass(frozen=True)
class Photographs:
    """The columns that protocols use to split a data set.

    Args:
        identities (`np.ndarray` of shape `(N,)`): int64; each image of an unknown individual has its own.
        is_unknown (`np.ndarray` of shape `(N,)`): Whether the individual is unknown.
        views (`np.ndarray` of shape `(N,)`): Cameras; without cameras, a key unique to each image.
        keys (`Sequence[str]` of length `N`): Equal for the same image.
        days (`Sequence[str]` of length `N`, *optional*): `"2024-05-31"`, or `""` if the day is not known.
        where (`str` or `Path`): The data set, for messages.
    """

    identities: np.ndarray
    is_unknown: np.ndarray
    views: np.ndarray
    keys: Sequence[str]
    days: Sequence[str] | None
    where: str | Path

    def is_known_in(self, rows: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Which of these rows show an individual of the `reference` rows."""
        return np.isin(self.identities[rows], self.identities[reference])


@dataclass(frozen=True)
class Choice:
    """Arguments of [`~dcal_hf.data.load_reid`] that determine the splits, the first three if they are not defined."""

    test_fraction: float
    query_fraction: float
    seed: int
    keep_unknown: bool = True


@dataclass
class Split:
    """Row indices of the existing splits, and the number of rows left out, by reason."""

    parts: dict[str, np.ndarray]
    left_out: Counter = field(default_factory=Counter)

    def leave_out(self, part: str, is_out: np.ndarray, reason: str) -> None:
        """Removes rows from a split, and counts them by reason."""
        if is_out.any():
            self.left_out[f"of {part} {reason}"] += int(is_out.sum())
            self.parts[part] = self.parts[part][~is_out]


def split_by_protocol(
    protocol: str, photographs: Photographs, found: dict[str, np.ndarray], choice: Choice
) -> Split:
    """Applies a protocol, and logs the sizes of the splits, the rows left out, and the overlap of the splits.

    Args:
        protocol (`str`): One of `PROTOCOLS`.
        photographs ([`Photographs`]): All images.
        found (`dict` of `np.ndarray`): Row indices of the data set's own train, query, gallery and test; only train
            if it has none.
        choice ([`Choice`]): How to choose what is missing.

    Raises:
        ValueError: If the protocol cannot be applied.
    """
    result = _FUNCTIONS[protocol](photographs, dict(found), choice)
    for part, rows in result.parts.items():
        if part == "train" or not choice.keep_unknown:
            result.leave_out(part, photographs.is_unknown[rows], "of unknown individuals")
    logger.info("%s, %s. %s", photographs.where, PROTOCOLS[protocol], describe_use(photographs, result))
    overlaps = describe_overlaps(photographs, result.parts)
    if overlaps:
        logger.info("%s: %s", photographs.where, overlaps)
    return result


def disjoint(photographs: Photographs, found: dict[str, np.ndarray], choice: Choice) -> Split:
    """Evaluates on individuals that are not in train. This is the default, and Market-1501's protocol.

    The data set's own query and gallery are kept. Otherwise they are created from the individuals of test or, without
    test, from a fraction (`test_fraction`) of those of train. Images of unknown individuals are distractors in the
    gallery.
    """
    where = photographs.where
    if {"gallery", "test"} <= set(found):
        raise ValueError(f"{where} has both gallery and test; keep or rename one of them")
    if "query" in found and "test" in found:
        found["gallery"] = found.pop("test")
    if "query" not in found and "gallery" not in found:
        if choice.test_fraction == 0 and "test" not in found:
            return Split(found)
        found = _from_held_out(photographs, found, choice)
    result = Split(found)
    if "query" in found:
        result.leave_out("query", photographs.is_unknown[found["query"]], "of unknown individuals")
    return result


def closed_set(photographs: Photographs, found: dict[str, np.ndarray], choice: Choice) -> Split:
    """Searches train for other images of the individuals in it.

    The queries are those images of query or test whose individual is in the gallery, which is the data set's own or
    train. Without query and test, a fraction (`query_fraction`) of the images of each individual become queries.
    """
    result = _with_gallery(photographs, found, choice, new_fraction=0)
    query, gallery = result.parts["query"], result.parts["gallery"]
    result.leave_out("query", photographs.is_unknown[query], "of unknown individuals")
    query = result.parts["query"]
    result.leave_out("query", ~photographs.is_known_in(query, gallery), "of individuals that the gallery lacks")
    if len(result.parts["query"]) == 0:
        raise ValueError(
            f"no query of {photographs.where} shows an individual of its gallery, as a closed set needs: choose "
            "another protocol"
        )
    return result


def open_set(photographs: Photographs, found: dict[str, np.ndarray], choice: Choice) -> Split:
    """Searches train for its individuals and for new ones, which must be distinguished from them.

    Like [`closed_set`], but queries of individuals that the gallery lacks are kept as new individuals. Each image of
    an unknown individual is a new individual. Without query and test, all images of a fraction (`test_fraction`) of
    the individuals become queries.
    """
    result = _with_gallery(photographs, found, choice, new_fraction=choice.test_fraction)
    query, gallery = result.parts["query"], result.parts["gallery"]
    known = int(photographs.is_known_in(query, gallery).sum())
    if known in (0, len(query)):
        raise ValueError(
            f"the open set needs queries of individuals in the gallery and of new ones, and {photographs.where} has "
            f"{known} of {len(query)} in the gallery: choose another protocol or another test_fraction"
        )
    return result


def by_time(photographs: Photographs, found: dict[str, np.ndarray], choice: Choice) -> Split:
    """Searches the photographs of earlier days (train) for the individuals on those of later days.

    The last days become queries: as many days as contain a fraction (`query_fraction`) of the images. No day has
    images in both. The data set's own splits are not used. Images without a day are left out. Queries of individuals
    that were not seen before are new, as in [`open_set`].

    Source: time-aware splits of WildlifeDatasets (Cermak et al., WACV 2024), with one cut for all individuals.
    """
    where = photographs.where
    if photographs.days is None:
        raise ValueError(f"a split by time needs dates, and {where} has no column 'date'")
    rows = np.sort(np.concatenate(list(found.values())))
    days = np.asarray(photographs.days)[rows]
    has_day = days != ""
    rows, days = rows[has_day], days[has_day]
    known_days, counts = np.unique(days, return_counts=True)
    if len(known_days) < 2:
        raise ValueError(f"a split by time needs images of two days, and those of {where} are of {len(known_days)}")
    # Number of images from each day on. Queries start at the latest day with enough images, but not at the first day.
    num_later = np.cumsum(counts[::-1])[::-1]
    first = max(int(np.flatnonzero(num_later >= choice.query_fraction * len(rows))[-1]), 1)
    logger.info("%s: the queries are from %s on, train is from before", where, known_days[first])
    is_later = days >= known_days[first]
    train, query = rows[~is_later], rows[is_later]
    result = Split({"train": train, "query": query, "gallery": train[~photographs.is_unknown[train]]})
    if not has_day.all():
        result.left_out["without a day"] = int((~has_day).sum())
    return result


_FUNCTIONS: dict[str, Callable[[Photographs, dict[str, np.ndarray], Choice], Split]] = {
    "disjoint": disjoint,
    "closed_set": closed_set,
    "open_set": open_set,
    "time": by_time,
}


def _from_held_out(photographs: Photographs, found: dict[str, np.ndarray], choice: Choice) -> dict[str, np.ndarray]:
    """Adds query and gallery, created from test or from individuals of train."""
    identities, views, where = photographs.identities, photographs.views, photographs.where
    if "test" in found:
        held_out = found.pop("test")
    elif choice.test_fraction == 1:
        held_out = found.pop("train")
    else:
        train = found["train"]
        unknown = photographs.is_unknown[train]
        known = train[~unknown]
        kept, chosen = split_by_identity(identities[known], views[known], choice.test_fraction, choice.seed, where)
        found, held_out = {"train": known[kept]}, np.sort(np.concatenate([known[chosen], train[unknown]]))
    is_distractor = photographs.is_unknown[held_out]
    tested, distractors = held_out[~is_distractor], held_out[is_distractor]
    query, gallery = choose_queries(identities[tested], views[tested], choice.query_fraction, choice.seed, where)
    query, gallery = tested[query], np.sort(np.concatenate([tested[gallery], distractors]))
    message = "%s: %d of %d identities are held out (%s, %s), %d are in train"
    total = np.unique(identities[(identities != JUNK_IDENTITY) & ~photographs.is_unknown])
    counts = [len(np.unique(identities[part])) for part in (tested, found.get("train", tested[:0]))]
    sizes = counted(len(query), "query", "queries"), counted(len(gallery), "gallery image")
    logger.info(message, where, counts[0], len(total), *sizes, counts[1])
    return {**found, "query": query, "gallery": gallery}


def _with_gallery(
    photographs: Photographs, found: dict[str, np.ndarray], choice: Choice, new_fraction: float
) -> Split:
    """Train, the queries, and the data set's own gallery or else train, without unknown individuals."""
    reference = found.get("gallery", found.get("train"))
    if reference is None:
        raise ValueError(f"{photographs.where} has neither train nor gallery, which the gallery is made of")
    train, asked = found.get("train", reference), found.get("query", found.get("test"))
    if asked is None:
        asked, reference = _take_queries(photographs, reference, choice, new_fraction)
        train = reference
    result = Split({"train": train, "query": asked, "gallery": reference})
    result.leave_out("gallery", photographs.is_unknown[reference], "of unknown individuals")
    return result


def _take_queries(
    photographs: Photographs, rows: np.ndarray, choice: Choice, new_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows into queries and the others: some images of each individual, all of new and, with these, unknown
    ones."""
    identities, is_unknown = photographs.identities[rows], photographs.is_unknown[rows]
    is_new = np.zeros(len(rows), dtype=bool)
    if new_fraction > 0:
        individuals = np.unique(identities[~is_unknown])
        chosen = stratified_split(np.zeros(len(individuals)), new_fraction, choice.seed)[1]
        is_new = is_unknown | np.isin(identities, individuals[chosen])
    known = rows[~(is_new | is_unknown)]
    query, _ = choose_queries(
        photographs.identities[known],
        photographs.views[known],
        choice.query_fraction,
        choice.seed,
        photographs.where,
    )
    is_query = is_new | np.isin(rows, known[query])
    return rows[is_query], rows[~is_query]


def describe_use(photographs: Photographs, result: Split) -> str:
    """Numbers of images and individuals of each split, of new queries, and of images left out, with the reasons."""
    facts = []
    for part, rows in result.parts.items():
        unknown = photographs.is_unknown[rows]
        individuals = np.unique(photographs.identities[rows[~unknown]])
        fact = f"{part}: {counted(len(rows), 'image')} of {counted(len(individuals), 'individual')}"
        facts.append(fact + (f", {unknown.sum()} of them of unknown ones" if unknown.any() else ""))
    if {"query", "gallery"} <= set(result.parts):
        query = result.parts["query"]
        new = query[~photographs.is_known_in(query, result.parts["gallery"])]
        if len(new):
            facts.append(f"{counted(len(new), 'query', 'queries')} of individuals that the gallery lacks")
    reasons = [f"{counted(count, 'image')} {reason}" for reason, count in result.left_out.items()]
    return "; ".join([*facts, f"left out: {', '.join(reasons) or 'nothing'}"])


def describe_overlaps(photographs: Photographs, parts: dict[str, np.ndarray]) -> str:
    """Numbers of images and individuals that pairs of splits share; `""` if there is only one split."""
    facts = []
    for first, second in combinations(parts, 2):
        keys = [{photographs.keys[row] for row in parts[part]} for part in (first, second)]
        individuals = np.intersect1d(*(photographs.identities[parts[part]] for part in (first, second)))
        shared = f"{counted(len(keys[0] & keys[1]), 'image')} and {counted(len(individuals), 'individual')}"
        facts.append(f"{first} and {second} share {shared}")
    return "; ".join(facts)


__all__ = ["PROTOCOLS", "Choice", "Photographs", "Split", "split_by_protocol"]
