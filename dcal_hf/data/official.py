"""Checks shared by the published data sets: their folders, files and sizes."""

import logging
from collections.abc import Mapping, Sequence
from os.path import isfile
from pathlib import Path

from ..errors import one_line
from .image_files import inner_folder


logger = logging.getLogger(__name__)


def official_root(data_dir: Path, tops: Sequence[str]) -> Path:
    """Finds the official folder, which is `data_dir` itself or a folder in it, also below folders that only wrap it.

    Args:
        data_dir (`Path`): An existing folder.
        tops (sequence of `str`): Possible names of the folder that the archive unpacks to.

    Raises:
        ValueError: If several of these folders exist.
    """
    data_dir = inner_folder(data_dir)
    present = [data_dir / top for top in tops if (data_dir / top).is_dir()]
    if len(present) > 1:
        raise ValueError(f"{data_dir} contains both {' and '.join(tops)}; set data_dir to the one to load")
    # An archive may have been unpacked into a folder of its own name.
    return official_root(present[0], tops) if present else data_dir


def require(path: Path, tops: Sequence[str]) -> Path:
    """Returns the path of a file or folder of a published data set if it exists.

    Raises:
        FileNotFoundError: If it does not exist. The message names it.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; data_dir must be the official folder {' or '.join(tops)}, or the one above it, "
            "or its archive"
        )
    return path


def check_listed(paths: Sequence[str], source: Path) -> None:
    """Checks that the listed images exist.

    Raises:
        FileNotFoundError: If not. The message names the first missing image.
    """
    missing = [path for path in paths if not isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{one_line(missing[0])}, which {source} lists, does not exist ({len(missing)} missing in total); unpack "
            "the archive again"
        )


def check_counts(
    name: str,
    where: str | Path,
    found: Mapping[str, tuple[int, int]],
    official: Mapping[str, tuple[int, int]],
    classes: str,
) -> None:
    """Warns once if a data set differs in size from the published one.

    Args:
        name (`str`): The data set.
        where (`str` or `Path`): Where it was found.
        found (mapping from `str` to `tuple[int, int]`): Number of classes and images of each split.
        official (mapping from `str` to `tuple[int, int]`): The published numbers, for at least these splits.
        classes (`str`): Plural noun for its classes.
    """
    differences = []
    for split, sizes in found.items():
        if sizes != official[split]:
            numbers = "{:,} {} and {:,} images, officially {:,} and {:,}"
            differences.append(f"{split} has {numbers.format(sizes[0], classes, sizes[1], *official[split])}")
    if differences:
        logger.warning("%s is not the published %s: %s", where, name, "; ".join(differences))


__all__ = ["check_counts", "check_listed", "official_root", "require"]
