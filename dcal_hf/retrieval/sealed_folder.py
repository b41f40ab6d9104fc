"""A folder of files that appears once it is complete, with a description that tells whether it is still whole."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..files import write_atomically


def save_sealed(
    folder: str | os.PathLike, description_file: str, description: dict[str, Any], write_files: Callable[[Path], None]
) -> None:
    """Writes a folder under a temporary name beside its own, and renames it.

    What lies under the name is moved aside before and deleted after. A process that is killed between the two leaves
    it in a hidden folder beside, whole.

    Args:
        folder (`str` or `os.PathLike`): The folder; a new one, an empty one, or one of the same kind.
        description_file (`str`): Name of the JSON file that all folders of this kind have.
        description (`dict`): What goes into it; size and SHA-256 of each file are added as `files`.
        write_files (`Callable`): Writes the other files into the folder it is given.

    Raises:
        FileExistsError: If something of another kind lies there.
    """
    folder = Path(folder).resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / description_file).exists():
        raise FileExistsError(f"{folder} has files but no {description_file}: choose another folder, or empty it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        write_files(new)
        content = json.dumps(description | {"files": _checksums(new)}, indent=2)
        write_atomically(new / description_file, content + "\n")
        if folder.exists():
            os.rename(folder, Path(temporary, "old"))
        os.rename(new, folder)


def read_description(folder: Path, description_file: str, format_version: int) -> dict[str, Any]:
    """The description of a folder that [`save_sealed`] wrote.

    Raises:
        FileNotFoundError: If it has none.
        ValueError: If it is damaged, or its `format_version` is another.
    """
    path = folder / description_file
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}.")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder} is damaged: {description_file} is no JSON.") from error
    found = description.get("format_version")
    if found != format_version:
        raise ValueError(f"{folder} has format version {found}, and this dcal_hf reads {format_version}.")
    return description


def check_files(folder: Path, files: dict[str, dict[str, int | str]]) -> None:
    """Compares the files with the sizes and checksums in the description.

    Raises:
        ValueError: If a file is missing, of another size, or of other content; the message names it.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder} is damaged: {name} is missing.")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise ValueError(f"{folder} is damaged: {name} has {size} bytes instead of {expected['bytes']}.")
        if _sha256(path) != expected["sha256"]:
            raise ValueError(f"{folder} is damaged: {name} is not what was saved.")


def _checksums(folder: Path) -> dict[str, dict[str, int | str]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


__all__ = ["check_files", "read_description", "save_sealed"]
