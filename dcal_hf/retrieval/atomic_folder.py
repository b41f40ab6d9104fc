"""Saves a folder atomically, with a description file whose checksums detect damage."""

import glob
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeVar

from ..files import write_atomically
from ..integrity import Fields, checksums, find_damage, locked, parse_description


Loaded = TypeVar("Loaded")

# How often a reader retries when a writer replaces the folder, and the pause between attempts in seconds.
ATTEMPTS, PAUSE = 20, 0.05


def save_folder(
    folder: str | os.PathLike, description_file: str, description: dict[str, Any], write_files: Callable[[Path], None]
) -> None:
    """Writes a folder under a temporary name next to the target, and renames it.

    An existing folder is moved aside first and deleted afterwards. If a writer is killed, the next one restores the
    folder that was moved aside and removes the leftovers.

    Args:
        folder (`str` or `os.PathLike`): The folder: new, empty, or of the same kind.
        description_file (`str`): Name of the JSON file that all folders of this kind have.
        description (`dict`): Content of that file; size and SHA-256 of each file are added as `files`.
        write_files (`Callable`): Writes the other files into the folder passed to it.

    Raises:
        FileExistsError: If the folder has files of another kind.
        BlockingIOError: If another process is saving the folder; the message names it.
    """
    folder = Path(folder).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    occupied = f"{folder} is being saved by {{holder}}: wait until it is done, or choose another folder."
    with locked(folder.with_name(f".{folder.name}.lock"), occupied):
        _clear_leftovers(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / description_file).exists():
            raise FileExistsError(f"{folder} has files but no {description_file}: choose another folder, or empty it.")
        with TemporaryDirectory(prefix=_temporary_prefix(folder), dir=folder.parent) as temporary:
            new = Path(temporary, "new")
            new.mkdir()
            write_files(new)
            content = json.dumps(description | {"files": checksums(new)}, indent=2)
            write_atomically(new / description_file, content + "\n")
            if folder.exists():
                os.rename(folder, Path(temporary, "old"))
            os.rename(new, folder)


def load_folder(
    folder: str | os.PathLike,
    description_file: str,
    format_version: int,
    fields: Fields,
    load: Callable[[Path, dict[str, Any]], Loaded],
) -> Loaded:
    """Loads a folder that [`save_folder`] wrote. If a writer replaces it meanwhile, loads it again, so that two
    versions never mix.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        description_file (`str`): Name of its description file.
        format_version (`int`): The required `format_version` of the description.
        fields (mapping from `str` to types): The other fields that it must have.
        load (`Callable`): Takes the folder and the description, checks the files and returns the loaded object.

    Raises:
        FileNotFoundError: If the folder has no description file.
        ValueError: If it is damaged or has another `format_version`.
        TimeoutError: If writers keep replacing it.
    """
    folder = Path(folder)
    path = folder / description_file
    for _ in range(ATTEMPTS):
        being_replaced = any(_temporary_folders(folder.resolve()))
        try:
            # While the file is open its inode is not reused: the same inode later means the folder was not replaced.
            file = path.open("rb")
        except FileNotFoundError as error:
            # Between the two renames of a writer the folder does not exist.
            if not being_replaced:
                raise FileNotFoundError(f"There is no {path}; check the path of the folder.") from error
            time.sleep(PAUSE)
            continue
        with file:
            try:
                loaded = load(folder, parse_description(file, path, format_version, fields))
            except (OSError, ValueError, RuntimeError):
                if _lies_at(file, path):
                    raise
            else:
                if _lies_at(file, path):
                    return loaded
        time.sleep(PAUSE)
    raise TimeoutError(f"{folder} keeps being replaced while it is read: load it when the writers have finished.")


def check_files(folder: Path, files: dict[str, dict[str, int | str]]) -> None:
    """Compares the files with the sizes and checksums in the description.

    Raises:
        ValueError: If a file is missing or differs in size or content; the message names it.
    """
    damage = find_damage(folder, files)
    if damage is not None:
        raise ValueError(f"{folder} is damaged: {damage}.")


def _temporary_prefix(folder: Path) -> str:
    return f".{folder.name}.saving."


def _temporary_folders(folder: Path) -> list[Path]:
    """The temporary folders of running and killed writers."""
    return list(folder.parent.glob(f"{glob.escape(_temporary_prefix(folder))}*"))


def _clear_leftovers(folder: Path) -> None:
    """Removes the leftovers of killed writers. Call it only while holding the lock."""
    for leftover in _temporary_folders(folder):
        moved_aside = leftover / "old"
        if moved_aside.is_dir() and not folder.exists():
            os.rename(moved_aside, folder)
        shutil.rmtree(leftover)


def _lies_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one that is now at `path`."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


__all__ = ["check_files", "load_folder", "save_folder"]
