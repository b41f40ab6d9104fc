"""Warns of duplicate images that make results wrong."""

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..errors import counted


logger = logging.getLogger(__name__)


def warn_of_duplicates(
    paths: Sequence[str], classes: Sequence[object], splits: Sequence[str], where: str | Path
) -> None:
    """Warns if a file has copies, equal byte for byte, in two classes or in two splits.

    Only files of the same size are read.

    Args:
        paths (sequence of `str`): (N,) existing files.
        classes (sequence): (N,) class or identity of each file.
        splits (sequence of `str`): (N,) split of each file.
        where (`str` or `Path`): The data set, for the message.
    """
    found_copies = copies(paths)
    reasons = {"in two classes or identities": classes, "in two splits": splits}
    for reason, values in reasons.items():
        found = [rows for rows in found_copies if len({values[row] for row in rows}) > 1]
        if found:
            first = found[0]
            other = next(row for row in first if values[row] != values[first[0]])
            logger.warning(
                "%s has %s with copies %s, which makes its results wrong; the first is %s and %s",
                where, counted(len(found), "image"), reason, paths[first[0]], paths[other],
            )


def copies(paths: Sequence[str]) -> list[list[int]]:
    """Groups of two or more files of the same content, by index. Only files of the same size are read."""
    groups: dict[object, list[int]] = defaultdict(list)
    for row, path in enumerate(paths):
        groups[os.path.getsize(path)].append(row)
    same = []
    for rows in groups.values():
        if len(rows) > 1:
            contents = defaultdict(list)
            for row in rows:
                contents[hashlib.sha256(Path(paths[row]).read_bytes()).digest()].append(row)
            same += [group for group in contents.values() if len(group) > 1]
    return sorted(same)


__all__ = ["copies", "warn_of_duplicates"]
