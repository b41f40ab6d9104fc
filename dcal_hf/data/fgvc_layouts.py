"""Fine-grained classification data sets in their published layouts."""

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import ClassLabel, DatasetDict
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from .folder import labelled_images
from .official import check_listed, official_root, require


OFFICIAL_FGVC = ("cub200", "stanford_cars", "fgvc_aircraft")
AIRCRAFT_LEVELS = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}

_CUB_TOPS = ("CUB_200_2011",)
_CARS_TOPS = ("stanford_cars",)
_AIRCRAFT_TOPS = ("fgvc-aircraft-2013b",)
# The official .mat files take some MB in memory.
MAX_MAT_BYTES = 100 << 20
_MAT_HEADER, _MAT_COMPRESSED = 128, 15

_AIRCRAFT_LISTS = {"train": "train", "validation": "val", "test": "test"}
_AIRCRAFT_CLASSES = {"variant": 100, "family": 70, "manufacturer": 30}


@dataclass(frozen=True)
class Annotations:
    """Images and their classes.

    Args:
        source (`Path`): The list that contains them, for error messages.
        paths (list of `str`): (N,) files.
        labels (list of `int`): (N,) class indices, from 0.
    """

    source: Path
    paths: list[str]
    labels: list[int]


def official_counts(name: str, level: str) -> dict[str, tuple[int, int]]:
    """Number of classes and images per split of CUB-200-2011 (Wah et al. 2011), Stanford Cars (Krause et al. 2013)
    and FGVC-Aircraft (Maji et al. 2013)."""
    if name == "cub200":
        return {"train": (200, 5_994), "test": (200, 5_794)}
    if name == "stanford_cars":
        return {"train": (196, 8_144), "test": (196, 8_041)}
    classes = _AIRCRAFT_CLASSES[level]
    return {"train": (classes, 3_334), "validation": (classes, 3_333), "test": (classes, 3_333)}


def read_official(name: str, folder: Path, splits: Sequence[str], level: str) -> DatasetDict:
    """Reads a published data set. Images are not opened; classes keep the official order and names.

    Args:
        name (`str`): One of `OFFICIAL_FGVC`.
        folder (`Path`): The folder that the archive unpacks to, or its parent. Stanford Cars, which comes in several
            archives, needs either `devkit`, `cars_train` and `cars_test`, with `cars_test_annos_withlabels.mat` next
            to them or in `devkit`, or `car_ims` and `cars_annos.mat`.
        splits (sequence of `str`): The splits to read, of train, validation (FGVC-Aircraft only) and test.
        level (`str`): The label level of FGVC-Aircraft, one of `AIRCRAFT_LEVELS`.

    Returns:
        `datasets.DatasetDict`: the splits, with the columns image and label.

    Raises:
        FileNotFoundError: if a list, or an image in a list, is missing; the message names it.
        ValueError: if a list is damaged or has no images of a split, or a row cannot be parsed or contradicts another
            list.
    """
    if name == "cub200":
        names, annotations = _read_cub(official_root(folder, _CUB_TOPS))
    elif name == "stanford_cars":
        names, annotations = _read_cars(official_root(folder, _CARS_TOPS), splits)
    else:
        names, annotations = _read_aircraft(official_root(folder, _AIRCRAFT_TOPS), splits, level)
    label, dataset = ClassLabel(names=names), DatasetDict()
    for split in splits:
        found = annotations[split]
        if not found.paths:
            raise ValueError(f"{found.source} lists no images of {split}; unpack the archive again")
        check_listed(found.paths, found.source)
        dataset[split] = labelled_images(found.paths, found.labels, label, split)
    return dataset


def _read_cub(root: Path) -> tuple[list[str], dict[str, Annotations]]:
    """Joins the lists on the image ID."""
    names = _read_numbered(root / "classes.txt", r"\S.*", "1 001.Black_footed_Albatross")
    images = _read_numbered(root / "images.txt", r"\S.*", "1 001.Black_footed_Albatross/image.jpg")
    classes = _read_numbered(root / "image_class_labels.txt", r"\d+", "1 1")
    in_train = _read_numbered(root / "train_test_split.txt", "[01]", "1 0")
    source = root / "images.txt"
    for table, file in ((classes, "image_class_labels.txt"), (in_train, "train_test_split.txt")):
        missing = [image for image in images if image not in table]
        if missing:
            raise ValueError(f"image {missing[0]} of {source} has no row in {root / file}; unpack the archive again")
    unknown = [image for image in images if classes[image] not in names]
    if unknown:
        raise ValueError(
            f"image {unknown[0]} has the class {classes[unknown[0]]} in {root / 'image_class_labels.txt'}, which "
            f"{root / 'classes.txt'} does not list; unpack the archive again"
        )
    place = {number: index for index, number in enumerate(names)}
    annotations = {}
    for split, flag in (("train", "1"), ("test", "0")):
        members = [image for image in images if in_train[image] == flag]
        paths = [str(root / "images" / images[image]) for image in members]
        annotations[split] = Annotations(source, paths, [place[classes[image]] for image in members])
    return list(names.values()), annotations


def _read_numbered(path: Path, value: str, example: str) -> dict[str, str]:
    """Reads rows of an ID and a value, in file order."""
    rows = _read_rows(require(path, _CUB_TOPS), rf"(\d+)\s+({value})", example)
    return {row[1]: row[2] for row in rows}


def _read_cars(root: Path, splits: Sequence[str]) -> tuple[list[str], dict[str, Annotations]]:
    if (root / "car_ims").is_dir():
        return _read_cars_at_once(root)
    names = np.atleast_1d(_read_mat(root / "devkit" / "cars_meta.mat", "class_names")).tolist()
    sources = {"train": root / "devkit" / "cars_train_annos.mat", "test": root / "cars_test_annos_withlabels.mat"}
    if not sources["test"].exists():
        sources["test"] = root / "devkit" / sources["test"].name
    annotations = {}
    for split in splits:
        rows = _read_structs(sources[split], "fname", "class")
        paths = [str(root / f"cars_{split}" / file) for file in rows["fname"]]
        annotations[split] = Annotations(sources[split], paths, _car_labels(rows["class"], len(names), sources[split]))
    return names, annotations


def _read_cars_at_once(root: Path) -> tuple[list[str], dict[str, Annotations]]:
    """Reads the layout with the images of both splits in one folder and one list."""
    source = root / "cars_annos.mat"
    names = np.atleast_1d(_read_mat(source, "class_names")).tolist()
    rows = _read_structs(source, "relative_im_path", "class", "test")
    labels = np.array(_car_labels(rows["class"], len(names), source))
    annotations = {}
    for split, flag in (("train", 0), ("test", 1)):
        members = rows["test"].astype(int) == flag
        paths = [str(root / file) for file in rows["relative_im_path"][members]]
        annotations[split] = Annotations(source, paths, labels[members].tolist())
    return names, annotations


def _read_structs(path: Path, *fields: str) -> np.ndarray:
    """The (N,) records of the variable `annotations`."""
    records = np.atleast_1d(_read_mat(path, "annotations"))
    missing = [field for field in fields if field not in (records.dtype.names or ())]
    if missing:
        raise ValueError(
            f"the annotations of {path} have no field {missing[0]!r}; use the official file, for the test images of "
            "Stanford Cars the one with labels"
        )
    return records


def _read_mat(path: Path, variable: str) -> np.ndarray:
    require(path, _CARS_TOPS)
    try:
        size = _unpacked_mat_size(path)
        if size > MAX_MAT_BYTES:
            raise ValueError(
                f"its compressed variables take more than {MAX_MAT_BYTES:,} bytes; if you trust it, save it "
                "uncompressed"
            )
        variables = loadmat(path, squeeze_me=True, variable_names=[variable])
    except (ValueError, TypeError, IndexError, OSError, NotImplementedError, MatReadError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a .mat file ({error}); download it again") from error
    if variable not in variables:
        raise ValueError(f"{path} has no variable {variable!r}; use the official file")
    return variables[variable]


def _unpacked_mat_size(path: Path) -> int:
    """Decompressed size in bytes of the variables of a MATLAB v5 file; stops counting above `MAX_MAT_BYTES`."""
    content, size = path.read_bytes(), 0
    order = ">" if content[126:128] == b"MI" else "<"
    place = _MAT_HEADER
    while place + 8 <= len(content) and size <= MAX_MAT_BYTES:
        kind, length = struct.unpack_from(f"{order}II", content, place)
        place += 8
        if kind == _MAT_COMPRESSED:
            size += len(zlib.decompressobj().decompress(content[place:place + length], MAX_MAT_BYTES + 1))
        place += length
    return size


def _car_labels(classes: np.ndarray, count: int, source: Path) -> list[int]:
    """Converts the official classes, which start at 1, to labels from 0."""
    labels = classes.astype(int) - 1
    unknown = np.flatnonzero((labels < 0) | (labels >= count))
    if len(unknown):
        raise ValueError(
            f"entry {unknown[0] + 1} of {source} has the class {classes[unknown[0]]}, but classes are 1 to {count}; "
            "download the file again"
        )
    return labels.tolist()


def _read_aircraft(root: Path, splits: Sequence[str], level: str) -> tuple[list[str], dict[str, Annotations]]:
    if (root / "data").is_dir():
        root = root / "data"
    class_list = require(root / AIRCRAFT_LEVELS[level], _AIRCRAFT_TOPS)
    names = [row[0] for row in _read_rows(class_list, ".+", "707-320")]
    place = {name: index for index, name in enumerate(names)}
    annotations = {}
    for split in splits:
        source = require(root / f"images_{level}_{_AIRCRAFT_LISTS[split]}.txt", _AIRCRAFT_TOPS)
        rows = _read_rows(source, r"(\d{7})\s+(\S.*)", f"1025794 {names[0]}")
        unknown = [row for row in rows if row[2] not in place]
        if unknown:
            raise ValueError(
                f"the row {unknown[0][0]!r} of {source} has a class that {class_list} does not list; unpack the "
                "archive again"
            )
        paths = [str(root / "images" / f"{row[1]}.jpg") for row in rows]
        annotations[split] = Annotations(source, paths, [place[row[2]] for row in rows])
    return names, annotations


def _read_rows(path: Path, pattern: str, example: str) -> list[re.Match]:
    """Parses the rows of a list; blank rows are skipped."""
    rows = []
    for number, row in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        match = re.fullmatch(pattern, row.strip())
        if match is not None:
            rows.append(match)
        elif row.strip():
            raise ValueError(
                f"row {number} of {path}, {row!r}, is not of the form {example!r}; unpack the archive again"
            )
    if not rows:
        raise ValueError(f"{path} is empty; unpack the archive again")
    return rows


__all__ = ["AIRCRAFT_LEVELS", "OFFICIAL_FGVC", "Annotations", "official_counts", "read_official"]
