"""Custom re-identification data sets: folders of identities, and tables."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image, Value

from ..errors import one_line, reason_of
from .image_files import images_by_name
from .reid_layouts import REID_SPLITS


TABLE_SUFFIXES = (".csv", ".parquet")
PART_NAMES = (*REID_SPLITS, "test")
_IMAGE = Image(mode="RGB")


@dataclass
class Rows:
    """Images and their annotations.

    Args:
        images (`datasets.Dataset`): A data set with the single column image.
        keys (list of `str`): Equal for rows of the same image: paths, or row numbers if rows contain encoded images.
        identities (list of `str`): Identity of each image.
        cameras (list of `str`, *optional*): Camera of each image.
        parts (list of `str`, *optional*): Split of each image, one of `PART_NAMES`.
        keys_are_paths (`bool`): Whether the keys are paths.
    """

    images: Dataset
    keys: list[str]
    identities: list[str]
    cameras: list[str] | None = None
    parts: list[str] | None = None
    keys_are_paths: bool = True


def read_identity_folder(root: Path) -> Rows:
    """Reads `root/{train,query,gallery}/<identity>/<image>`, or `root/<identity>/<image>`.

    Files are listed, not opened. Files without an image suffix are skipped with one warning, hidden files silently.

    Raises:
        ValueError: if there are no identity folders, or some of them have no images; the message names all of these.
    """
    present = [part for part in PART_NAMES if (root / part).is_dir()]
    files = images_by_name([root / part for part in present] or [root], "identity", root)
    paths = [path for listed in files for path in listed]
    keys = [str(path) for path in paths]
    return Rows(
        images=image_dataset(keys),
        keys=keys,
        identities=[path.parent.name for path in paths],
        parts=[part for part, listed in zip(present, files) for _ in listed] if present else None,
    )


def read_table(path: Path, image_dir: str | Path | None = None) -> Rows:
    """Reads a table with the columns image, identity and, optionally, camera (or camera_id) and split.

    Args:
        path (`Path`): A CSV file with a header, or a Parquet file, whose column image may also contain encoded images
            as written by `datasets`.
        image_dir (`str` or `Path`, *optional*): The folder that image paths are relative to; by default the table's.

    Raises:
        FileNotFoundError: if an image is missing; the message names it and its row.
        ValueError: if a column or a value is missing, a split is unknown, or the table has no rows.
    """
    columns = _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path)
    if not columns:
        raise ValueError(f"{path} is empty; its first line must name the columns image and identity")
    missing = [column for column in ("image", "identity") if column not in columns]
    if missing:
        raise ValueError(
            f"{path} has no column {' and no column '.join(map(repr, missing))}; it has {one_line(', '.join(columns))}"
        )
    if len(columns["identity"]) == 0:
        raise ValueError(f"{path} has no rows")
    holds_images = isinstance(columns["image"], Dataset)
    if holds_images:
        images, keys = columns["image"], [str(number) for number in range(len(columns["image"]))]
    else:
        keys = _resolved(columns["image"], path, image_dir)
        images = image_dataset(keys)
    camera = next((column for column in ("camera", "camera_id") if column in columns), None)
    parts = _values(columns["split"], "split", path) if "split" in columns else None
    unknown = [number for number, part in enumerate(parts or []) if part not in PART_NAMES]
    if unknown:
        raise ValueError(
            f"{path} has the split {one_line(parts[unknown[0]])!r} in row {unknown[0] + 1}; splits are "
            f"{', '.join(PART_NAMES)}"
        )
    return Rows(
        images=images,
        keys=keys,
        identities=_values(columns["identity"], "identity", path),
        cameras=None if camera is None else _values(columns[camera], camera, path),
        parts=parts,
        keys_are_paths=not holds_images,
    )


def _read_csv(path: Path) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        try:
            columns, rows = reader.fieldnames, list(reader)
        except (ValueError, csv.Error) as error:
            raise ValueError(
                f"{path} is no CSV table in UTF-8 after line {reader.line_num} ({reason_of(error)}); save it as one"
            ) from error
    return {column: [row[column] for row in rows] for column in columns or ()}


def _read_parquet(path: Path) -> dict[str, Sequence[object] | Dataset]:
    """Columns as lists; a column of encoded images stays on disk as a data set."""
    try:
        table = Dataset.from_parquet(str(path))
    except Exception as error:
        # What pyarrow raises on damaged files has no common base class; datasets wraps some of it.
        raise ValueError(
            f"{path} cannot be read as a Parquet table ({reason_of(error.__cause__ or error)}); write it again"
        ) from error
    columns = {column: _named(table, column) for column in table.column_names if column != "image"}
    if "image" in table.column_names:
        images = table.select_columns("image")
        by_path = table.features["image"] in (Value("string"), Value("large_string"))
        columns["image"] = images["image"][:] if by_path else images.cast_column("image", _IMAGE)
    return columns


def _named(table: Dataset, column: str) -> list[object]:
    """A column as a list, with class names instead of class indices."""
    feature, values = table.features[column], table[column][:]
    return feature.int2str(values) if isinstance(feature, ClassLabel) else values


def _values(column: Sequence[object], name: str, path: Path) -> list[str]:
    # A missing number is NaN, which is not equal to itself.
    empty = [number for number, value in enumerate(column) if value in (None, "") or value != value]
    if empty:
        raise ValueError(f"{path} has no {name} in row {empty[0] + 1} ({len(empty)} such rows in total)")
    return [str(value).strip() for value in column]


def _resolved(names: Sequence[str], path: Path, image_dir: str | Path | None) -> list[str]:
    folder = path.parent if image_dir is None else Path(image_dir).expanduser()
    files = [str(folder / name) for name in _values(names, "image", path)]
    missing = [number for number, file in enumerate(files) if not isfile(file)]
    if missing:
        raise FileNotFoundError(
            f"{one_line(files[missing[0]])}, in row {missing[0] + 1} of {path}, does not exist ({len(missing)} "
            "missing in total); paths are relative to the table's folder, or to data_dir"
        )
    return files


def image_dataset(paths: Sequence[str]) -> Dataset:
    """A data set with the single column image, from file paths."""
    return Dataset.from_dict({"image": list(paths)}, features=Features({"image": _IMAGE}))


__all__ = ["PART_NAMES", "TABLE_SUFFIXES", "Rows", "image_dataset", "read_identity_folder", "read_table"]
