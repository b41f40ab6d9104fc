"""Loads re-identification data sets by name.

A published data set is read from its official folders. A warning is logged if its size differs from the official one.
Junk images (identity -1) are removed; distractors (Market-1501's identity 0) stay in the gallery. MSMT17 numbers the
identities of train separately from those of query and gallery, both from 0.

Your own data set is a folder `root/{train,query,gallery}/<identity>/<image>` or `root/<identity>/<image>`, or a CSV or
Parquet table with the columns image (a path relative to the table or to `data_dir`), identity and, optionally, camera
and split. If query and gallery are missing, they are created from the identities of test (a folder or split of that
name) or, without test, from a fraction of the identities of train, which are removed from train. Some images of each
of these identities become queries, provided that they have a match in the gallery. If all identities are integers,
they are kept as ids. Otherwise they are numbered in the order of their names, and `identity` is a `ClassLabel` with
the names. The same applies to cameras.

Instead of a folder, an archive (.tar, .tar.gz, .tgz or .zip) can be given: it is unpacked once, into the cache of
`datasets`.

Without cameras there is no column `camera_id`, and the evaluation ignores only the query itself in the gallery.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Value

from ..metrics.protocol import JUNK_IDENTITY
from .archives import data_folder
from .duplicates import warn_of_duplicates
from .image_files import inner_folder
from .reid_layouts import OFFICIAL_REID, REID_SPLITS, read_official
from .reid_own import PART_NAMES, TABLE_SUFFIXES, Rows, image_dataset, read_identity_folder, read_table
from .reid_splits import check_matches, choose_queries, split_by_identity
from .reid_synthetic import synthetic_reid
from .splits import class_indices


logger = logging.getLogger(__name__)

_INTEGER = re.compile(r"-?[0-9]{1,18}")


def load_reid(
    name: str | Path,
    data_dir: str | Path | None = None,
    *,
    splits: Sequence[str] = REID_SPLITS,
    include_val: bool = True,
    test_fraction: float = 0.3,
    query_fraction: float = 0.2,
    seed: int = 42,
    max_unpacked_bytes: int | None = None,
    warn_duplicates: bool = True,
) -> DatasetDict:
    """Loads a re-identification data set as training images, queries, and the gallery to search.

    See [`dcal_hf.data.reid`] for the data sets, the layouts and how splits are created.

    Args:
        name (`str` or `Path`): What to load. The first match counts:

            - "drawn": the built-in data set of [`synthetic_reid`] with its default sizes;
            - "market1501", "dukemtmc", "msmt17" (V1 and V2), "veri776": the data set in `data_dir`;
            - "imagefolder": the folder `data_dir`;
            - an existing folder, or a table: a file that ends in .csv or .parquet.
        data_dir (`str` or `Path`, *optional*):
            The official folder or its parent folder; for "imagefolder", the folder; for a table, the folder that its
            paths are relative to (no archive); otherwise a folder inside `name`.
        splits (sequence of `str`, *optional*): Which of train, query and gallery to return; the others need not exist.
            By default all three.
        include_val (`bool`, *optional*, defaults to `True`):
            Whether train of MSMT17 is list_train and list_val, as in papers, or list_train only.
        test_fraction (`float`, *optional*, defaults to 0.3):
            Fraction of the identities to hold out if query, gallery and test are missing. 1 leaves no train, 0 leaves
            only train. The numbers of identities are logged.
        query_fraction (`float`, *optional*, defaults to 0.2), seed (`int`, *optional*, defaults to 42):
            Fraction of the images of a held-out identity to use as queries, at least one and not all; seed of both.
        max_unpacked_bytes (`int`, *optional*): As in [`data_folder`].
        warn_duplicates (`bool`, *optional*, defaults to `True`): Whether to warn if your own data set has the same
            image under two identities or in two splits. [`inspect_images`] checks this for any data set.

    Returns:
        `datasets.DatasetDict`: train, query and gallery, each with the columns image (`datasets.Image`, RGB), identity
        (int64) and, if cameras are known, camera_id (int64); train also has label (`ClassLabel`, identities in
        ascending order).

    Raises:
        FileNotFoundError: If a folder, a table, a list or a listed image is missing. The message names it.
        ValueError: If a file name, row or column is malformed, an archive cannot be unpacked, a split is missing or
            cannot be created, or no query has a match in the gallery.
    """
    _check_arguments(splits, test_fraction, query_fraction)
    if name == "drawn":
        dataset = synthetic_reid()
        return DatasetDict({split: dataset[split] for split in splits})
    if name in OFFICIAL_REID:
        columns, parts, where = _read_official(name, data_dir, splits, include_val, max_unpacked_bytes)
    else:
        where = _source(name, data_dir, max_unpacked_bytes)
        columns, parts = _read_own(where, data_dir, splits, test_fraction, query_fraction, seed, warn_duplicates)
    _check_parts(columns, parts, splits, where)
    return _assemble(columns, {split: parts[split] for split in splits})


@dataclass
class _Columns:
    """N images with their identities and cameras; `views` as in [`matched`]."""

    images: Dataset
    identities: np.ndarray
    views: np.ndarray
    cameras: np.ndarray | None
    identity_feature: Value | ClassLabel
    camera_feature: Value | ClassLabel


def _check_arguments(splits: Sequence[str], test_fraction: float, query_fraction: float) -> None:
    unknown = [split for split in splits if split not in REID_SPLITS]
    if unknown:
        raise ValueError(f"there is no split {unknown[0]!r}; splits can be {', '.join(REID_SPLITS)}")
    if not 0 <= test_fraction <= 1:
        raise ValueError(f"test_fraction must be from 0 to 1, not {test_fraction}")
    if not 0 < query_fraction < 1:
        raise ValueError(f"query_fraction must be above 0 and below 1, not {query_fraction}")


def _read_official(
    name: str, data_dir: str | Path | None, splits: Sequence[str], include_val: bool, max_unpacked_bytes: int | None
) -> tuple[_Columns, dict[str, np.ndarray], Path]:
    """A published data set: its images, the row indices of each split, and where it is."""
    if data_dir is None:
        raise ValueError(f"{name!r} needs data_dir, the official folder or the one above it, or its archive")
    photos = read_official(name, data_dir, splits, include_val, max_unpacked_bytes)
    ends = np.cumsum([len(listed) for listed in photos.values()])
    parts = dict(zip(photos, np.split(np.arange(ends[-1]), ends[:-1])))
    paths, identities, cameras = zip(*(photo for listed in photos.values() for photo in listed))
    cameras = np.array(cameras)
    integer = Value("int64")
    columns = _Columns(image_dataset(paths), np.array(identities), cameras, cameras, integer, integer)
    return columns, parts, Path(data_dir)


def _read_own(
    where: Path,
    image_dir: str | Path | None,
    splits: Sequence[str],
    test_fraction: float,
    query_fraction: float,
    seed: int,
    warn_duplicates: bool,
) -> tuple[_Columns, dict[str, np.ndarray]]:
    """A data set of the user's: its images, and the row indices of each split."""
    rows = read_table(where, image_dir) if where.is_file() else read_identity_folder(where)
    columns, parts = _from_own_rows(rows, test_fraction, query_fraction, seed, where)
    if rows.keys_are_paths and warn_duplicates:
        placed = [(rows.keys[row], rows.identities[row], part) for part in parts for row in parts[part].tolist()]
        warn_of_duplicates(*zip(*placed), where)
    is_unsplit = rows.parts is None or set(rows.parts) == {"train"}
    use = {0: "test", 1: "train"}.get(test_fraction)
    if is_unsplit and use is not None and not set(splits) <= set(parts):
        raise ValueError(f"test_fraction={test_fraction:g} leaves no identity of {where} to {use} on: choose another")
    return columns, parts


def _check_parts(columns: _Columns, parts: dict[str, np.ndarray], splits: Sequence[str], where: Path) -> None:
    """Checks that the splits exist, and that a query has a match in the gallery."""
    missing = [split for split in splits if split not in parts]
    if missing:
        raise ValueError(f"{where} has no {missing[0]}; it has {', '.join(parts)}: add it, or leave it out of splits")
    if {"query", "gallery"} <= set(splits):
        query, gallery = (
            (columns.identities[parts[split]].tolist(), columns.views[parts[split]].tolist())
            for split in ("query", "gallery")
        )
        check_matches(*query, *gallery, has_cameras=columns.cameras is not None, where=where)


def _from_own_rows(
    rows: Rows, test_fraction: float, query_fraction: float, seed: int, where: Path
) -> tuple[_Columns, dict[str, np.ndarray]]:
    identities, identity_feature = _encode_names(rows.identities)
    cameras, camera_feature = (None, Value("int64")) if rows.cameras is None else _encode_names(rows.cameras)
    views = np.array(rows.keys) if cameras is None else cameras
    columns = _Columns(rows.images, identities, views, cameras, identity_feature, camera_feature)

    parts = np.array(["train"] * len(identities) if rows.parts is None else rows.parts)
    kept = identities != JUNK_IDENTITY
    found = {part: np.flatnonzero((parts == part) & kept) for part in PART_NAMES if part in parts}
    return columns, _make_splits(columns, found, test_fraction, query_fraction, seed, where)


def _encode_names(names: Sequence[str]) -> tuple[np.ndarray, Value | ClassLabel]:
    """Encodes names as int64: by their values if all are integers, else by their index in sorted order."""
    known = sorted(set(names))
    if all(map(_INTEGER.fullmatch, known)) and len(set(map(int, known))) == len(known):
        return np.array(list(map(int, names))), Value("int64")
    feature = ClassLabel(names=known)
    return np.array(class_indices(names, feature)), feature


def _make_splits(
    columns: _Columns,
    found: dict[str, np.ndarray],
    test_fraction: float,
    query_fraction: float,
    seed: int,
    where: Path,
) -> dict[str, np.ndarray]:
    """Row indices of train, query and gallery, from those of the existing parts."""
    if {"gallery", "test"} <= set(found):
        raise ValueError(f"{where} has both gallery and test; keep or rename one of them")
    if "query" in found and "test" in found:
        found = {"gallery" if part == "test" else part: indices for part, indices in found.items()}
    if "query" in found or "gallery" in found:
        return found
    if "test" in found:
        held_out = found.pop("test")
    elif test_fraction == 0:
        return found
    elif test_fraction == 1:
        held_out = found.pop("train")
    else:
        train = found["train"]
        kept, chosen = split_by_identity(columns.identities[train], columns.views[train], test_fraction, seed, where)
        found, held_out = {"train": train[kept]}, train[chosen]
    query, gallery = choose_queries(
        columns.identities[held_out], columns.views[held_out], query_fraction, seed, where
    )
    train = found.get("train", held_out[:0])
    tested, trained = (len(np.unique(columns.identities[part])) for part in (held_out, train))
    total = len(np.unique(columns.identities[columns.identities != JUNK_IDENTITY]))
    message = "%s: %d of %d identities are held out (%d queries, %d gallery images), %d are in train"
    logger.info(message, where, tested, total, len(query), len(gallery), trained)
    return {**found, "query": held_out[query], "gallery": held_out[gallery]}


def _assemble(columns: _Columns, parts: dict[str, np.ndarray]) -> DatasetDict:
    dataset = columns.images.add_column("identity", columns.identities, feature=columns.identity_feature)
    if columns.cameras is not None:
        dataset = dataset.add_column("camera_id", columns.cameras, feature=columns.camera_feature)
    splits = DatasetDict()
    for split, indices in parts.items():
        part = dataset
        if split == "train":
            labels, feature = _labels(columns, indices)
            part = part.add_column("label", labels, feature=feature)
        splits[split] = part.select(indices)
    return splits


def _labels(columns: _Columns, train: np.ndarray) -> tuple[list[int | None], ClassLabel]:
    """For every row, the index of its identity among those of train, or None if it is not there; and the feature."""
    known = np.unique(columns.identities[train]).tolist()
    label = {identity: number for number, identity in enumerate(known)}
    feature = columns.identity_feature
    names = feature.int2str(known) if isinstance(feature, ClassLabel) else list(map(str, known))
    return [label.get(identity) for identity in columns.identities.tolist()], ClassLabel(names=names)


def _source(name: str | Path, data_dir: str | Path | None, max_unpacked_bytes: int | None) -> Path:
    """The folder or table given by `name` and `data_dir`."""
    if name == "imagefolder":
        if data_dir is None:
            raise ValueError("'imagefolder' needs data_dir, the folder that holds the identities")
        name, data_dir = data_dir, None
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return path
    path /= Path(data_dir or "").expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{str(path)!r} is none of drawn, {', '.join(OFFICIAL_REID)}, and neither an existing folder nor a table "
            f"({' or '.join(TABLE_SUFFIXES)}); check the path"
        )
    return inner_folder(data_folder(path, max_unpacked_bytes=max_unpacked_bytes))


__all__ = ["load_reid"]
