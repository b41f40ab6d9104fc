"""Fine-grained classification data sets in their published layouts."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, DatasetDict

from ..errors import one_line, reason_of
from .folder import labelled_images
from .matlab import read_variable
from .official import check_listed, official_root, require


OFFICIAL_FGVC = ("cub200", "stanford_cars", "fgvc_aircraft")
AIRCRAFT_LEVELS = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}

_CUB_TOPS = ("CUB_200_2011",)
_CARS_TOPS = ("stanford_cars",)
_AIRCRAFT_TOPS = ("fgvc-aircraft-2013b",)

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
    names = _car_classes(root / "devkit" / "cars_meta.mat")
    sources = {"train": root / "devkit" / "cars_train_annos.mat", "test": root / "cars_test_annos_withlabels.mat"}
    if not sources["test"].exists():
        sources["test"] = root / "devkit" / sources["test"].name
    annotations = {}
    for split in splits:
        source = sources[split]
        files, classes = _read_structs(source, fname=str, **{"class": int})
        paths = [str(root / f"cars_{split}" / file) for file in files]
        annotations[split] = Annotations(source, paths, _car_labels(classes, len(names), source))
    return names, annotations


def _read_cars_at_once(root: Path) -> tuple[list[str], dict[str, Annotations]]:
    """Reads the layout with the images of both splits in one folder and one list."""
    source = root / "cars_annos.mat"
    names = _car_classes(source)
    files, classes, flags = _read_structs(source, relative_im_path=str, **{"class": int}, test=int)
    rows = list(zip(files, _car_labels(classes, len(names), source), flags, strict=True))
    annotations = {}
    for split, flag in (("train", 0), ("test", 1)):
        members = [(str(root / file), label) for file, label, of_test in rows if of_test == flag]
        annotations[split] = Annotations(source, [path for path, _ in members], [label for _, label in members])
    return names, annotations


def _car_classes(path: Path) -> list[str]:
    names = _read_mat(path, "class_names")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names of {path} are no list of texts; use the official file")
    return names


def _read_structs(path: Path, **fields: type) -> list[list[Any]]:
    """Fields of the struct array `annotations`, each (N,) of a type; MATLAB writes whole numbers as any number."""
    records = _read_mat(path, "annotations")
    if not isinstance(records, dict):
        raise ValueError(f"the annotations of {path} have no fields; use the official file")
    columns = []
    for field, kind in fields.items():
        if field not in records:
            raise ValueError(
                f"the annotations of {path} have no field {field!r}; use the official file, for the test images of "
                "Stanford Cars the one with labels"
            )
        values = [int(value) if _is_whole(value) else value for value in records[field]]
        wrong = [number for number, value in enumerate(values) if not isinstance(value, kind)]
        if wrong:
            shown = one_line(repr(values[wrong[0]]))
            raise ValueError(f"entry {wrong[0] + 1} of {path} has the {field} {shown}; download the file again")
        columns.append(values)
    return columns


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def _read_mat(path: Path, variable: str) -> Any:
    require(path, _CARS_TOPS)
    try:
        return read_variable(path.read_bytes(), variable)
    except KeyError as error:
        raise ValueError(f"{path} has no variable {variable!r}; use the official file") from error
    except (ValueError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a .mat file ({reason_of(error)}); download it again") from error


def _car_labels(classes: Sequence[int], count: int, source: Path) -> list[int]:
    """Converts the official classes, which start at 1, to labels from 0."""
    unknown = [number for number, value in enumerate(classes) if not 1 <= value <= count]
    if unknown:
        raise ValueError(
            f"entry {unknown[0] + 1} of {source} has the class {classes[unknown[0]]}, but classes are 1 to {count}; "
            "download the file again"
        )
    return [value - 1 for value in classes]


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
    for number, row in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
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
