"""Atomic file writing: under a temporary name first, renamed when complete."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np


def write_atomically(path: str | os.PathLike, content: bytes | str) -> Path:
    """Writes a file that appears under its name only when it is complete.

    Args:
        path (`str` or `os.PathLike`): The file. Its folder is created if it does not exist.
        content (`bytes` or `str`): The content; text is encoded as UTF-8.

    Returns:
        `Path`: the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        # On a full disk, half a file would take the space that is left.
        temporary.unlink(missing_ok=True)
    return path


def save_table(header: Sequence[object], rows: Iterable[Sequence[object]], path: str | os.PathLike) -> Path:
    """Writes a CSV table atomically."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return write_atomically(path, table.getvalue())


def save_confusion_matrix(matrix: np.ndarray, names: Sequence[str], path: str | os.PathLike) -> None:
    """Writes a confusion matrix as a CSV table with the class names as first row and first column.

    The table appears under its name only when it is complete.

    Args:
        matrix (`np.ndarray` of shape `(classes, classes)`):
            Counts, one row per true class.
        names (`Sequence[str]` of length `classes`):
            The class names.
        path (`str` or `os.PathLike`):
            The file to write.

    Raises:
        ValueError: If the matrix is not square with one row per name.
    """
    matrix = np.asarray(matrix)
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"A confusion matrix of {len(names)} classes must be square, got shape {matrix.shape}.")
    rows = ([name, *counts] for name, counts in zip(names, matrix.tolist(), strict=True))
    save_table(["true \\ predicted", *names], rows, path)


__all__ = ["save_confusion_matrix", "save_table", "write_atomically"]
