"""Loads re-identification data sets by name. The first match counts:

- a table: a file that ends in .csv or .parquet, or an object with `df` and `root`;
- "drawn": the built-in data set of [`synthetic_reid`] with its default sizes;
- "market1501", "dukemtmc", "msmt17" (V1 and V2), "veri776": the data set in `data_dir`;
- "imagefolder": the folder `data_dir`;
- an existing folder.

A published data set is read from its official folders. A warning is logged if its size differs from the official one.
Junk images (identity -1) are removed; distractors (Market-1501's identity 0) stay in the gallery. MSMT17 numbers the
identities of train separately from those of query and gallery, both from 0.

Your own data set is a folder `root/{train,query,gallery}/<identity>/<image>` or `root/<identity>/<image>`, or a table:
a CSV or Parquet file, or an object with the attributes `df` (a pandas data frame) and `root`, such as a data set of
WildlifeDatasets. Its columns are image or path (relative to the table or to `data_dir`), identity and, optionally,
bbox (`[x, y, width, height]` in pixels: the part that [`~dcal_hf.data.read_images`], the transforms and `embed_images`
read), camera, date and split. Images of the identity "unknown" do not show one individual: they are not trained on,
and are distractors in the gallery or new individuals.

The protocol determines what is searched for, and in what; see [`dcal_hf.data.reid_protocols`]. By default, if query
and gallery are missing, they are created from the identities of test (a folder or split of that name) or, without
test, from a fraction of the identities of train, which are removed from train. Some images of each of these identities
become queries, provided that they have a match in the gallery. What is used, what is left out and what the splits have
in common is logged. If all identities are integers, they are kept as ids. Otherwise they are numbered in the order of
their names, and `identity` is a `ClassLabel` with the names. The same applies to cameras.

`test_fraction` of the identities are held out if query, gallery and test are missing: from training ("disjoint"; 1
leaves no train, 0 leaves only train), or from train and gallery, so that they are new ("open_set"). `query_fraction`
of the images of an identity become queries, at least one and not all; with "time", it is the fraction of all images
that are at least on the days of the queries.

Instead of a folder, an archive (.tar, .tar.gz, .tgz or .zip) can be given: it is unpacked once, into the cache of
`datasets`.

Without cameras there is no column `camera_id`, and the evaluation ignores only the query itself in the gallery.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, List, Value

from ..metrics.protocol import JUNK_IDENTITY
from .archives import data_folder
from .columns import column
from .duplicates import warn_of_duplicates
from .image_files import inner_folder
from .reid_layouts import OFFICIAL_REID, REID_SPLITS, read_official
from .reid_own import PART_NAMES, UNKNOWN, Rows, image_dataset, read_identity_folder
from .reid_protocols import PROTOCOLS, Choice, Photographs, split_by_protocol
from .reid_splits import check_matches
from .reid_synthetic import synthetic_reid
from .reid_tables import TABLE_SUFFIXES, is_table, open_table, read_table
from .splits import class_indices


_INTEGER = re.compile(r"-?[0-9]{1,18}")
_UNKNOWN_NAME = f"{UNKNOWN}, row "


def load_reid(
    name: str | Path | object,
    data_dir: str | Path | None = None,
    *,
    splits: Sequence[str] = REID_SPLITS,
    protocol: str = "disjoint",
    camera_column: str | None = None,
    include_val: bool = True,
    test_fraction: float = 0.3,
    query_fraction: float = 0.2,
    seed: int = 42,
    keep_unknown: bool = True,
    max_unpacked_bytes: int | None = None,
    warn_duplicates: bool = True,
) -> DatasetDict:
    """Loads a re-identification data set as training images, queries, and the gallery to search; see
    [`dcal_hf.data.reid`] for the data sets, the layouts and how splits are created.

    Args:
        name (`str`, `Path` or object): "drawn", "market1501", "dukemtmc", "msmt17", "veri776", "imagefolder", a table
            or a folder.
        data_dir (`str` or `Path`, *optional*): The official folder or its parent folder; for "imagefolder", the
            folder; for a table, the folder that its paths are relative to; otherwise a folder inside `name`.
        splits (sequence of `str`, *optional*): Which of train, query and gallery to return; others need not exist.
        protocol (`str`, *optional*, defaults to `"disjoint"`): For your own data set, one of
            [`~dcal_hf.data.PROTOCOLS`]: "disjoint", "closed_set", "open_set" or "time" (needs the column date).
        camera_column (`str`, *optional*): The column of a table that stands for the camera: with "date", photographs
            of one individual on one day do not count as matches.
        include_val (`bool`, *optional*, defaults to `True`): Whether train of MSMT17 includes list_val, as in papers.
        test_fraction (0.3), query_fraction (0.2): Fraction of the identities to hold out, of images to use as queries.
        seed (`int`, *optional*, defaults to 42): Seed of both choices; see [`dcal_hf.data.reid`].
        keep_unknown (`bool`, *optional*, defaults to `True`): Whether query and gallery have unknown individuals.
        max_unpacked_bytes (`int`, *optional*): As in [`data_folder`].
        warn_duplicates (`bool`, *optional*, defaults to `True`): Whether to warn if your own data set has the same
            image under two identities or in two splits. [`inspect_images`] checks this for any data set.

    Returns:
        `datasets.DatasetDict`: train, query and gallery, each with the columns image (`datasets.Image`, RGB), identity
        (int64) and, if cameras are known, camera_id (int64); train also has label (`ClassLabel`, identities in
        ascending order). A table's column bbox is kept.

    Raises:
        FileNotFoundError: If a folder, a table, a list or a listed image is missing. The message names it.
        ValueError: If a file name, row or column is malformed, an archive cannot be unpacked, a split is missing or
            cannot be created, the protocol does not suit the data set, or no query has a match in the gallery.
    """
    _check_arguments(splits, test_fraction, query_fraction, protocol)
    choice = Choice(test_fraction, query_fraction, seed, keep_unknown)
    if is_table(name) or name not in ("drawn", *OFFICIAL_REID):
        rows, where = _read_own(name, data_dir, camera_column, max_unpacked_bytes)
        columns, parts = _split_own(rows, where, protocol, choice, splits, warn_duplicates)
    elif protocol != "disjoint" or camera_column is not None:
        raise ValueError(f"{name!r} has a protocol and cameras of its own; leave out protocol and camera_column")
    elif name == "drawn":
        dataset = synthetic_reid()
        return DatasetDict({split: dataset[split] for split in splits})
    else:
        columns, parts, where = _read_official(name, data_dir, splits, include_val, max_unpacked_bytes)
    _check_parts(columns, parts, splits, where)
    return _assemble(columns, {split: parts[split] for split in splits})


@dataclass
class _Columns:
    """N images with their identities and cameras; `views` as in [`matched`], `boxes` as in `Rows`."""

    images: Dataset
    identities: np.ndarray
    views: np.ndarray
    cameras: np.ndarray | None
    identity_feature: Value | ClassLabel
    camera_feature: Value | ClassLabel
    boxes: list[list[float] | None] | None = None


def _check_arguments(splits: Sequence[str], test_fraction: float, query_fraction: float, protocol: str) -> None:
    unknown = [split for split in splits if split not in REID_SPLITS]
    if unknown:
        raise ValueError(f"there is no split {unknown[0]!r}; splits can be {', '.join(REID_SPLITS)}")
    if not 0 <= test_fraction <= 1:
        raise ValueError(f"test_fraction must be from 0 to 1, not {test_fraction}")
    if not 0 < query_fraction < 1:
        raise ValueError(f"query_fraction must be above 0 and below 1, not {query_fraction}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")


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
    name: str | Path | object,
    data_dir: str | Path | None,
    camera_column: str | None,
    max_unpacked_bytes: int | None,
) -> tuple[Rows, str | Path]:
    """A data set of the user's, a table or a folder, and its name for messages."""
    if name == "imagefolder":
        if data_dir is None:
            raise ValueError("'imagefolder' needs data_dir, the folder that holds the identities")
        name, data_dir = data_dir, None
    if isinstance(name, str | Path):
        name = Path(name).expanduser()
    if is_table(name):
        table = open_table(name, data_dir)
        return read_table(table, camera_column), table.where
    if camera_column is not None:
        raise ValueError(f"camera_column is a column of a table, and {name} is none: leave it out")
    path = name / Path(data_dir or "").expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{str(path)!r} is none of drawn, {', '.join(OFFICIAL_REID)}, and neither an existing folder nor a table "
            f"({' or '.join(TABLE_SUFFIXES)}); check the path"
        )
    folder = inner_folder(data_folder(path, max_unpacked_bytes=max_unpacked_bytes))
    return read_identity_folder(folder), folder


def _split_own(
    rows: Rows, where: str | Path, protocol: str, choice: Choice, splits: Sequence[str], warn_duplicates: bool
) -> tuple[_Columns, dict[str, np.ndarray]]:
    """A data set of the user's: its images, and the row indices of each split."""
    columns, parts = _from_own_rows(rows, where, protocol, choice)
    if warn_duplicates:
        _look_for_duplicates(rows, parts, where)
    is_unsplit = protocol == "disjoint" and (rows.parts is None or set(rows.parts) == {"train"})
    use = {0: "test", 1: "train"}.get(choice.test_fraction)
    if is_unsplit and use is not None and not set(splits) <= set(parts):
        raise ValueError(
            f"test_fraction={choice.test_fraction:g} leaves no identity of {where} to {use} on: choose another"
        )
    return columns, parts


def _check_parts(columns: _Columns, parts: dict[str, np.ndarray], splits: Sequence[str], where: str | Path) -> None:
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
    rows: Rows, where: str | Path, protocol: str, choice: Choice
) -> tuple[_Columns, dict[str, np.ndarray]]:
    """The images, and the row indices of the splits that the protocol makes of them."""
    is_unknown = np.array([identity.lower() == UNKNOWN for identity in rows.identities])
    identities, identity_feature = _encode_identities(rows.identities, is_unknown)
    cameras, camera_feature = (None, Value("int64")) if rows.cameras is None else _encode_names(rows.cameras)
    views = np.array(rows.keys) if cameras is None else cameras
    columns = _Columns(rows.images, identities, views, cameras, identity_feature, camera_feature, rows.boxes)

    part_of_rows = np.array(["train"] * len(identities) if rows.parts is None else rows.parts)
    kept = identities != JUNK_IDENTITY
    found = {part: np.flatnonzero((part_of_rows == part) & kept) for part in PART_NAMES if part in part_of_rows}
    photographs = Photographs(identities, is_unknown, views, rows.keys, rows.days, where)
    return columns, split_by_protocol(protocol, photographs, found, choice).parts


def _look_for_duplicates(rows: Rows, parts: dict[str, np.ndarray], where: str | Path) -> None:
    """Looks through the images that are files, and read as a whole: one photograph may show several individuals."""
    if rows.paths is None:
        return
    placed: dict[int, str] = {}
    for part, indices in parts.items():
        for row in indices.tolist():
            placed.setdefault(row, part)
    whole = [row for row in placed if rows.boxes is None or rows.boxes[row] is None]
    columns = (rows.paths, rows.identities, placed)
    warn_of_duplicates(*([column[row] for row in whole] for column in columns), where)


def _encode_identities(names: Sequence[str], is_unknown: np.ndarray) -> tuple[np.ndarray, Value | ClassLabel]:
    """As [`_encode_names`]; an unknown individual has its own identity, a number below -1 or a name with its row."""
    known = [name for name, unknown in zip(names, is_unknown) if not unknown]
    numbers, feature = _encode_names(known)
    identities = np.empty(len(names), dtype=np.int64)
    identities[~is_unknown] = numbers
    count = int(is_unknown.sum())
    if isinstance(feature, ClassLabel):
        identities[is_unknown] = feature.num_classes + np.arange(count)
        feature = ClassLabel(names=feature.names + [f"{_UNKNOWN_NAME}{row + 1}" for row in np.flatnonzero(is_unknown)])
    else:
        identities[is_unknown] = min(numbers.min(initial=JUNK_IDENTITY), JUNK_IDENTITY) - 1 - np.arange(count)
    return identities, feature


def known_identities(part: Dataset) -> list[int]:
    """The identities in a split of [`load_reid`], without those of unknown individuals."""
    feature, identities = part.features["identity"], sorted(set(column(part, "identity")))
    if isinstance(feature, ClassLabel):
        return [number for number in identities if not feature.int2str(number).startswith(_UNKNOWN_NAME)]
    return [number for number in identities if number > JUNK_IDENTITY]


def _encode_names(names: Sequence[str]) -> tuple[np.ndarray, Value | ClassLabel]:
    """Encodes names as int64: by their values if all are integers, else by their index in sorted order."""
    known = sorted(set(names))
    if all(map(_INTEGER.fullmatch, known)) and len(set(map(int, known))) == len(known):
        return np.array(list(map(int, names))), Value("int64")
    feature = ClassLabel(names=known)
    return np.array(class_indices(names, feature)), feature


def _assemble(columns: _Columns, parts: dict[str, np.ndarray]) -> DatasetDict:
    dataset = columns.images.add_column("identity", columns.identities, feature=columns.identity_feature)
    if columns.cameras is not None:
        dataset = dataset.add_column("camera_id", columns.cameras, feature=columns.camera_feature)
    if columns.boxes is not None:
        dataset = dataset.add_column("bbox", columns.boxes, feature=List(Value("float64")))
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


__all__ = ["known_identities", "load_reid"]
