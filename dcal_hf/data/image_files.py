"""Finds the image files in folders. Files are listed, not opened."""

import logging
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from itertools import filterfalse
from pathlib import Path

from ..errors import counted
from .splits import SPLITS


logger = logging.getLogger(__name__)

# Names of split folders, in both tasks.
PARTS = frozenset(alias for aliases in SPLITS.values() for alias in aliases) | {"query", "gallery"}

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .heic .heif .jfif .jpe .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split()
)


def image_files(folder: Path, recursive: bool = False) -> list[Path]:
    """The images in a folder, recognised by their suffix and sorted by path, without hidden files.

    Args:
        folder (`Path`): An existing folder.
        recursive (`bool`, *optional*, defaults to `False`): Whether to include the images in visible subfolders, also
            links to folders.

    Raises:
        ValueError: If the name of an image, or of a folder above it, is not UTF-8; the message names it.
    """
    if not recursive:
        return _images(visible(folder))
    return sorted(_images(_files_below(folder, {folder.resolve()})))


def visible(folder: Path) -> list[Path]:
    """The visible entries of a folder, sorted by path."""
    return sorted(path for path in folder.iterdir() if _is_visible(path.name))


def _files_below(folder: Path, above: Set[Path]) -> Iterator[Path]:
    """The visible files in a folder and its visible subfolders, except links to a folder that is `above` them."""
    for path in visible(folder):
        if not path.is_dir():
            yield path
        elif (target := path.resolve()) not in above:
            yield from _files_below(path, above | {target})


def images_by_name(folders: Iterable[Path], kind: str, where: object) -> list[list[Path]]:
    """Lists the images `folder/<name>/<image>` of folders that have one subfolder per class or identity.

    Other entries of the subfolders are skipped with one warning, hidden files silently.

    Args:
        folders (iterable of `Path`): Existing folders, such as one for each split.
        kind (`str`): "class" or "identity", for messages.
        where: The data set, for the warning.

    Returns:
        `list[list[Path]]`: the images in each of `folders`.

    Raises:
        ValueError: If one of `folders` has no subfolders, or subfolders have no images; the message names them. Also
            if a name is not UTF-8, as in [`image_files`].
    """
    files, skipped = [], []
    for folder in folders:
        named = [path for path in visible(folder) if path.is_dir()]
        if not named:
            raise ValueError(
                f"{folder} contains no {kind} folders; put the images of each {kind} into {folder / f'<{kind}>'}"
            )
        entries = {path: visible(path) for path in named}
        empty = [path for path in named if not any(map(_is_image_name, entries[path]))]
        if empty:
            raise ValueError(_describe_empty(kind, empty))
        listed = [entry for path in named for entry in entries[path]]
        files.append(_images(listed))
        skipped += filterfalse(_is_image_name, listed)
    if skipped:
        message = "Skipped what is no image in the %s folders of %s: %s, the first is %s"
        logger.warning(message, kind, where, counted(len(skipped), "entry", "entries"), skipped[0])
    return files


def split_folders(root: Path, names: Collection[str]) -> dict[str, Path]:
    """Finds the folders in `root` that are named like splits, in lower or upper case.

    Args:
        names (collection of `str`): The names in lower case.

    Returns:
        `dict[str, Path]`: the folders by their names in lower case, in the order of `names`.

    Raises:
        ValueError: If the names of two folders differ in case only.
    """
    found = {}
    for path in visible(root):
        name = path.name.lower()
        if name in names and path.is_dir():
            if name in found:
                raise ValueError(f"{root} has both {found[name].name} and {path.name}; keep or rename one of them")
            found[name] = path
    return {name: found[name] for name in names if name in found}


def folder_name(path: Path) -> str:
    """The name of the folder of an image, its class or identity.

    macOS may write a letter with an accent as two characters (NFD) where other systems write one (NFC); both spellings
    are the same name.
    """
    return unicodedata.normalize("NFC", path.parent.name)


def inner_folder(root: Path) -> Path:
    """Skips folders that only wrap the folder of the data set, as unpacking an archive may create them.

    A folder is a wrapper if its only entry is a folder that contains only folders, unless that entry is a split.
    """
    while True:
        entries = visible(root)
        if len(entries) != 1 or not entries[0].is_dir() or entries[0].name.lower() in PARTS:
            return root
        inner = visible(entries[0])
        if not inner or not all(entry.is_dir() for entry in inner):
            return root
        logger.info("%s contains only the folder %s, which is read instead", root, entries[0].name)
        root = entries[0]


def misplaced_images(paths: Sequence[str]) -> list[Path]:
    """The images that are not read because they are next to the class folders, or in subfolders of them.

    Args:
        paths (sequence of `str`): The images that are read, `.../<class>/<image>`.

    Returns:
        `list[Path]`: the other images, sorted within each folder.
    """
    class_folders = sorted({Path(path).parent for path in paths})
    tops = {folder.parent for folder in class_folders}
    tops |= {top.parent for top in tops if top.name.lower() in PARTS}
    beside = [path for top in sorted(tops) for path in visible(top) if _is_image_name(path) and path.is_file()]
    inner = [path for folder in class_folders for path in visible(folder) if path.is_dir()]
    return beside + [path for folder in inner for path in image_files(folder, recursive=True)]


def _images(paths: Iterable[Path]) -> list[Path]:
    """The images among these paths."""
    images = list(filter(_is_image_name, paths))
    for path in images:
        try:
            # Data sets and tables are UTF-8.
            str(path).encode()
        except UnicodeEncodeError as error:
            shown = str(path).encode(errors="backslashreplace").decode()
            raise ValueError(f"the name of {shown} is not UTF-8: rename it") from error
    return images


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _is_visible(name: str) -> bool:
    """Excludes hidden files and `__MACOSX`, the metadata folder that macOS adds to archives."""
    return not name.startswith(".") and name != "__MACOSX"


def _describe_empty(kind: str, folders: Sequence[Path]) -> str:
    """The error message for folders without images: what the first contains, and the names of the others."""
    first, *others = folders
    nested = [path.name for path in visible(first) if path.is_dir()]
    message = f"the {kind} folder {first} contains no images; put images directly into it, or remove it"
    if nested:
        message = (
            f"the {kind} folder {first} contains no images, only folders ({', '.join(nested[:3])}"
            f"{', ...' if len(nested) > 3 else ''}); put the images directly into it or, if these are the {kind} "
            "folders, move them up"
        )
    if others:
        names = ", ".join(path.name for path in others[:10])
        message += f". {len(others)} more contain none: {names}{', ...' if len(others) > 10 else ''}"
    return message


__all__ = [
    "IMAGE_SUFFIXES",
    "PARTS",
    "folder_name",
    "image_files",
    "images_by_name",
    "inner_folder",
    "misplaced_images",
    "split_folders",
    "visible",
]
