"""Tables of individuals: CSV, Parquet, and objects with a data frame and a folder."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value
from pandas import isna

from ..errors import counted, one_line, reason_of
from .reid_own import IMAGE_FEATURE, PART_NAMES, Rows, image_dataset


TABLE_SUFFIXES = (".csv", ".parquet")
IMAGE_COLUMNS = ("image", "path")
CAMERA_COLUMNS = ("camera", "camera_id")
# Some tables use this name for the gallery.
PART_ALIASES = {"database": "gallery"}
# How pandas and Python write a missing entry as text.
MISSING_TEXTS = frozenset(("", "nan", "NaN", "NaT", "None", "<NA>"))
# Year, month and day in this order, with any separator, and perhaps a time.
_DAY = re.compile(r"([0-9]{4})[-:/.]?([0-9]{2})[-:/.]?([0-9]{2})(?:[T ].*)?")
_PART_OF_A_DATE = re.compile(r"[0-9]{4}(?:[-:/.]?[0-9]{2})?")


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Args:
        columns (`dict`): Lists by name; a column of encoded images is a data set.
        where (`Path` or `str`): The table's name in messages.
        folder (`Path`): The folder that image paths are relative to.
    """

    columns: dict[str, Sequence[Any] | Dataset]
    where: Path | str
    folder: Path

    def column(self, name: str, parse: Callable[[Any], Any], expected: str = "") -> list:
        """Parses the entries of a column.

        Args:
            parse (`Callable`): Raises `ValueError` for an invalid entry.
            expected (`str`): Describes a valid entry, for the message.

        Raises:
            ValueError: If an entry is invalid; the message names table, row and column.
        """
        parsed = []
        for number, value in enumerate(self.columns[name], start=1):
            try:
                parsed.append(parse(value))
            except ValueError as error:
                raise ValueError(
                    f"{self.where} has the {name} {one_line(value)!r} in row {number}, column {name!r}: {expected}"
                ) from error
        return parsed

    def names(self, name: str) -> list[str]:
        """The entries of a column as stripped text.

        Raises:
            ValueError: If an entry is missing; the message names table, row and column.
        """
        column = self.columns[name]
        empty = [number for number, value in enumerate(column, start=1) if is_missing(value)]
        if empty:
            raise ValueError(
                f"{self.where} has no {name} in row {empty[0]} ({counted(len(empty), 'such row')} in total), column "
                f"{name!r}"
            )
        return [str(value).strip() for value in column]


def is_table(source: object) -> bool:
    """Whether [`open_table`] reads it: a CSV or Parquet file, or an object with the attributes `df` and `root`."""
    if hasattr(source, "df") and hasattr(source, "root"):
        return True
    return isinstance(source, str | Path) and Path(source).suffix.lower() in TABLE_SUFFIXES and isfile(source)


def open_table(source: str | Path | object, image_dir: str | Path | None = None) -> Table:
    """Opens a CSV file with a header, a Parquet file, or an object such as a data set of WildlifeDatasets.

    Args:
        source (`str`, `Path` or object):
            The file; or an object with `df`, a pandas data frame, and `root`, the folder of its images.
        image_dir (`str` or `Path`, *optional*): The folder that image paths are relative to, instead of the table's.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        columns = _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path)
        where, folder = path, path.parent
    else:
        columns = {str(name): source.df[name].tolist() for name in source.df.columns}
        where, folder = type(source).__name__, Path(source.root or "")
    # Absolute for the same reason as in `data_folder`.
    return Table(columns, where, (folder if image_dir is None else Path(image_dir).expanduser()).absolute())


def read_table(table: Table, camera_column: str | None = None) -> Rows:
    """Reads the columns image or path, identity and, optionally, bbox, camera (or camera_id), date and split.

    Args:
        table ([`Table`]): Its column image may contain encoded images as written by `datasets`.
        camera_column (`str`, *optional*):
            The column to use as camera. For date, only the day is used; all photographs without a date have the same
            unknown day.

    Raises:
        FileNotFoundError: if an image is missing; the message names it and its row.
        ValueError: if a column or a value is missing or invalid, or the table has no rows.
    """
    columns, where = table.columns, table.where
    if not columns:
        raise ValueError(f"{where} is empty; its first line must name the columns image and identity")
    image_column = next((name for name in IMAGE_COLUMNS if name in columns), "image")
    _require(table, image_column, "identity", *([] if camera_column is None else [camera_column]))
    if len(columns["identity"]) == 0:
        raise ValueError(f"{where} has no rows")
    if camera_column is None:
        camera_column = next((name for name in CAMERA_COLUMNS if name in columns), None)
    holds_images = isinstance(columns[image_column], Dataset)
    paths = None if holds_images else _resolved(table, image_column)
    boxes = days = parts = cameras = None
    if "bbox" in columns:
        expected = "it must be [x, y, width, height] in pixels (quoted, in CSV), with a width and height above 0"
        boxes = table.column("bbox", parse_box, expected)
    if "date" in columns:
        days = table.column("date", parse_day, "it must begin with year, month and day, such as 2024-05-31")
    if "split" in columns:
        parts = [PART_ALIASES.get(part, part) for part in table.names("split")]
        check_parts(parts, where)
    if camera_column is not None:
        cameras = days if camera_column == "date" else table.names(camera_column)
    keys = paths or [str(number) for number in range(len(columns["identity"]))]
    return Rows(
        images=columns[image_column] if holds_images else image_dataset(paths),
        keys=keys if boxes is None else [f"{key} {box}" for key, box in zip(keys, boxes)],
        identities=table.names("identity"),
        cameras=cameras,
        parts=parts,
        paths=paths,
        boxes=boxes,
        days=days,
    )


def check_parts(parts: Sequence[str], where: str | Path) -> None:
    """
    Raises:
        ValueError: If a split is unknown; the message names its row.
    """
    unknown = [number for number, part in enumerate(parts) if part not in PART_NAMES]
    if unknown:
        raise ValueError(
            f"{where} has the split {one_line(parts[unknown[0]])!r} in row {unknown[0] + 1}, column 'split': "
            f"splits are {', '.join(PART_NAMES)}"
        )


def parse_box(value: Any) -> list[float] | None:
    """`[x, y, width, height]`, as numbers or as text (`"[1, 2, 3, 4]"`, `"1 2 3 4"`), or None if it is missing.

    Raises:
        ValueError: If these are not four finite numbers, the last two above 0.
    """
    if is_missing(value):
        return None
    entries = re.split(r"[,;\s]+", value.strip("[]() \t")) if isinstance(value, str) else np.ravel(value)
    box = [float(entry) for entry in entries]
    if len(box) == 4 and all(entry != entry for entry in box):
        return None
    if len(box) != 4 or not np.isfinite(box).all() or min(box[2:]) <= 0:
        raise ValueError(f"not a box: {value!r}")
    return box


def parse_day(value: Any) -> str:
    """The day of a date, `"2024-05-31"`, or `""` if it is missing or there is only a year or a month.

    Raises:
        ValueError: If it does not begin with year, month and day.
    """
    text = "" if is_missing(value) else str(value).strip()
    if not text or _PART_OF_A_DATE.fullmatch(text):
        return ""
    match = _DAY.fullmatch(text)
    if match is None:
        raise ValueError(f"not a date: {value!r}")
    return date(*map(int, match.groups())).isoformat()


def is_missing(value: Any) -> bool:
    """Whether an entry of a table is None, NaN or NaT, or text without a value."""
    if isinstance(value, str):
        return value.strip() in MISSING_TEXTS
    return np.ndim(value) == 0 and bool(isna(value))


def _require(table: Table, *names: str) -> None:
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ValueError(
            f"{table.where} has no column {' and no column '.join(map(repr, missing))}; it has "
            f"{one_line(', '.join(table.columns))}; rename its columns, or add the missing one"
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
    if not any(map(str.strip, columns or ())):
        return {}
    return {column: [row[column] for row in rows] for column in columns}


def _read_parquet(path: Path) -> dict[str, Sequence[object] | Dataset]:
    """Columns as lists; a column of encoded images stays on disk as a data set."""
    try:
        table = Dataset.from_parquet(str(path))
        # Damaged text is only found here.
        columns = {column: _named(table, column) for column in table.column_names if column != "image"}
        if "image" in table.column_names:
            images = table.select_columns("image")
            by_path = table.features["image"] in (Value("string"), Value("large_string"))
            columns["image"] = images["image"][:] if by_path else images.cast_column("image", IMAGE_FEATURE)
    except Exception as error:
        # What pyarrow raises on damaged files has no common base class; datasets wraps some of it.
        raise ValueError(
            f"{path} cannot be read as a Parquet table ({reason_of(error.__cause__ or error)}); write it again"
        ) from error
    return columns


def _named(table: Dataset, column: str) -> list[object]:
    """A column as a list, with class names instead of class indices."""
    feature, values = table.features[column], table[column][:]
    return feature.int2str(values) if isinstance(feature, ClassLabel) else values


def _resolved(table: Table, column: str) -> list[str]:
    files = [str(table.folder / name) for name in table.names(column)]
    missing = [number for number, file in enumerate(files, start=1) if not isfile(file)]
    if missing:
        raise FileNotFoundError(
            f"{one_line(files[missing[0] - 1])}, in row {missing[0]} of {table.where}, column {column!r}, does not "
            f"exist ({len(missing)} missing in total); paths are relative to the table's folder, or to data_dir"
        )
    return files


__all__ = ["TABLE_SUFFIXES", "Table", "is_table", "open_table", "parse_box", "parse_day", "read_table"]
