"""Checksums and descriptions that detect damaged folders, and locks that let one process at a time write them."""

import hashlib
import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from .errors import one_line


# Size and SHA-256 of each file, keyed by its path relative to the folder.
Checksums = Mapping[str, Mapping[str, int | str]]
# The types that fields of a description may have.
Fields = Mapping[str, type | tuple[type, ...]]


def checksums(folder: Path, exclude: Collection[str] = ()) -> dict[str, dict[str, int | str]]:
    """Size and SHA-256 of each file in a folder, recursively, as `{"bytes": ..., "sha256": ...}`."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for name, path in paths.items()
        if name not in exclude
    }


def find_damage(folder: Path, files: Checksums) -> str | None:
    """Compares files with their [`checksums`].

    Returns:
        `str`, *optional*: What is wrong with the first file that is missing or differs in size or content.
    """
    for name, expected in files.items():
        if not isinstance(expected, dict):
            return f"the size and checksum of {name} are not recorded"
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != expected.get("bytes"):
            return f"{name} has {size} bytes instead of {expected.get('bytes')}"
        if _sha256(path) != expected.get("sha256"):
            return f"{name} has changed since it was saved"
    return None


def parse_description(file: BinaryIO, path: Path, format_version: int, fields: Fields) -> dict[str, Any]:
    """Reads an open description file.

    Raises:
        ValueError: If it is not valid JSON, has another `format_version`, or lacks a field; the message names it.
    """
    try:
        description = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.parent} is damaged: {path.name} is not valid JSON.") from error
    if not isinstance(description, dict):
        raise ValueError(f"{path.parent} is damaged: {path.name} is not a JSON object.")
    found = description.get("format_version")
    if found != format_version:
        raise ValueError(
            f"{path.parent} has format version {one_line(found)}, and this dcal_hf reads {format_version}."
        )
    for name, kinds in fields.items():
        if name not in description:
            raise ValueError(f"{path.parent} is damaged: {path.name} has no {name}.")
        if not isinstance(description[name], kinds):
            raise ValueError(f"{path.parent} is damaged: {name} of {path.name} has another type.")
    return description


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, occupied: str) -> Iterator[None]:
    """Holds a lock while the block runs. The system releases it when the process ends, even if it is killed.

    Args:
        path (`Path`): The lock file. It is not deleted, since two processes could then hold the lock.
        occupied (`str`): Error message for a process that finds the lock held, with a placeholder `{holder}`.

    Raises:
        BlockingIOError: If another process holds the lock; the message names the process and its host.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(occupied.format(holder=path.read_text(encoding="utf-8") or "another process")) from error
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        lock.release()


__all__ = ["Checksums", "Fields", "checksums", "find_damage", "locked", "parse_description"]
