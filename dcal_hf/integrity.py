"""Checksums that detect damaged folders, and locks that let one process at a time write them."""

import hashlib
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


# Size and SHA-256 of each file, keyed by its path relative to the folder.
Checksums = Mapping[str, Mapping[str, int | str]]


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


__all__ = ["Checksums", "checksums", "find_damage", "locked"]
