"""Finds unreadable, tiny and duplicate images of a data set in one pass, before training."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from os.path import isfile
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Image
from tqdm import tqdm

from .duplicates import copies
from .images import MAX_PIXELS, check_image, image_error_reason


# Smaller images are usually placeholders for missing ones.
MIN_SIDE = 8
# Of copies in two splits, the one in the later of these splits is kept: it is the one that is evaluated.
_SPLIT_ORDER = ("distractors", "train", "validation", "gallery", "query", "test")
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Finding:
    """A problem with an image.

    Args:
        split (`str`), row (`int`): The position of the image.
        image (`str`): Its path, or its row if it has no path.
        problem (`str`):
            `"unreadable"`, also if its bbox is outside of it; `"tiny"`, with a side below `MIN_SIDE` pixels; or equal
            byte for byte to another image: `"in two classes"`, `"in two splits"` of one class, or `"repeated"` in its
            class.
        detail (`str`): The reason, the size, or the other image.
    """

    split: str
    row: int
    image: str
    problem: str
    detail: str


@dataclass
class _Seen:
    split: str
    row: int
    image: str
    class_: Hashable
    path: str | None
    size: tuple[int, int] | None = None
    error: str = ""
    digest: bytes | None = None
    box: tuple[float, ...] | None = None

    def finding(self, problem: str, detail: str) -> Finding:
        return Finding(self.split, self.row, self.image, problem, detail)


def inspect_images(
    dataset: DatasetDict,
    class_column: str,
    *,
    decode: bool = True,
    max_pixels: int = MAX_PIXELS,
    progress: bool = False,
) -> list[Finding]:
    """Checks every image of a data set once, in parallel threads. [`leave_out`] removes the images found.

    Of an image with copies in two classes, all copies are found, because its class is unknown. Of an image with copies
    in two splits, all are found except the one that is evaluated (in the order test, query, gallery, validation,
    train, distractors). Of any other, all are found except the first.

    Args:
        dataset (`datasets.DatasetDict`): Splits with a column image (files or encoded images) and the class column,
            which distractors need not have.
        class_column (`str`): The column of the classes or identities.
        decode (`bool`, *optional*, defaults to `True`):
            Whether to read the complete files, see [`check_image`]; otherwise only headers and files of the same size.
        max_pixels (`int`, *optional*): As in [`open_image`].
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `list[Finding]`: the problems, in the order of splits and rows.
    """
    seen = []
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=sum(map(len, dataset.values())), desc="Checking images", unit="image", disable=not progress) as bar,
    ):
        for split, part in dataset.items():
            for one in _look(part, split, class_column, partial(_examine, decode, max_pixels), pool):
                seen.append(one)
                bar.update()
    findings = [one.finding("unreadable", one.error) for one in seen if one.error]
    readable = [one for one in seen if not one.error]
    small = [one for one in readable if min(one.size) < MIN_SIDE]
    findings += [one.finding("tiny", "{} x {} pixels".format(*one.size)) for one in small]
    share_classes = _share_classes(dataset, class_column)
    for group in _groups([one for one in readable if min(one.size) >= MIN_SIDE]):
        findings += _copies_to_leave_out(group, share_classes)
    place = {split: number for number, split in enumerate(dataset)}
    return sorted(findings, key=lambda finding: (place[finding.split], finding.row))


def leave_out(dataset: DatasetDict, findings: Sequence[Finding]) -> DatasetDict:
    """Removes the images found by [`inspect_images`].

    Raises:
        ValueError: If a split has no other images.
    """
    rows = defaultdict(set)
    for finding in findings:
        rows[finding.split].add(finding.row)
    kept = DatasetDict()
    for split, part in dataset.items():
        kept[split] = part.select([row for row in range(len(part)) if row not in rows[split]])
        if not kept[split]:
            first = next(finding for finding in findings if finding.split == split)
            raise ValueError(f"{split} has no usable image: the first, {first.image}, is {first.problem}")
    return kept


def _look(part: Dataset, split: str, class_column: str, examine: partial, pool: ThreadPoolExecutor) -> Iterator[_Seen]:
    """Yields the images of a split in order, with a part of them in memory at a time."""
    part = part.with_format(None)
    classes = part[class_column][:] if class_column in part.column_names else [None] * len(part)
    images = part.select_columns("image").cast_column("image", Image(decode=False))
    boxes = [box and tuple(box) for box in part["bbox"][:]] if "bbox" in part.column_names else [None] * len(part)
    for start in range(0, len(images), _ROWS_AT_ONCE):
        records = images[start:start + _ROWS_AT_ONCE]["image"]
        outcomes = pool.map(examine, records, boxes[start:start + _ROWS_AT_ONCE])
        for row, (record, (size, error, digest)) in enumerate(zip(records, outcomes), start=start):
            name = record["path"] or f"row {row + 1} of {split}"
            path = record["path"] if record["bytes"] is None else None
            yield _Seen(split, row, name, classes[row], path, size, error, digest, boxes[row])


def _examine(
    decode: bool, max_pixels: int, record: Mapping[str, object], box: tuple[float, ...] | None
) -> tuple[tuple[int, int] | None, str, bytes | None]:
    """Returns size, error message and, if its content was read, the digest of an image."""
    path, content = record["path"], record["bytes"]
    if decode and content is None and path is not None and isfile(path):
        try:
            content = Path(path).read_bytes()
        except OSError:
            # The check below raises the error with a message.
            pass
    try:
        size = check_image({"path": path, "bytes": content}, max_pixels, decode, box)
    except ValueError as error:
        return None, image_error_reason(error.__cause__), None
    return size, "", None if content is None else hashlib.sha256(content).digest()


def _groups(seen: Sequence[_Seen]) -> list[list[_Seen]]:
    """Groups of two or more images of the same content, and of the same part of it."""
    by_content = defaultdict(list)
    on_disk = [one for one in seen if one.digest is None]
    for number, rows in enumerate(copies([one.path for one in on_disk])):
        for row in rows:
            by_content[number, on_disk[row].box].append(on_disk[row])
    for one in seen:
        if one.digest is not None:
            by_content[one.digest, one.box].append(one)
    return [group for group in by_content.values() if len(group) > 1]


def _share_classes(dataset: DatasetDict, class_column: str) -> bool:
    """Whether the numbers of classes mean the same names in all splits that have classes."""
    features = [part.features[class_column] for part in dataset.values() if class_column in part.column_names]
    return all(isinstance(feature, ClassLabel) and feature == features[0] for feature in features)


def _copies_to_leave_out(group: Sequence[_Seen], share_classes: bool) -> list[Finding]:
    classes = defaultdict(set)
    for one in group:
        classes[one.split].add(one.class_)
    labelled = [one for one in group if one.class_ is not None]
    if any(len(own) > 1 for own in classes.values()) or share_classes and len({one.class_ for one in labelled}) > 1:
        return [
            one.finding("in two classes", f"also {next(other.image for other in group if other.class_ != one.class_)}")
            for one in group
        ]
    kept = max(group, key=lambda one: (_SPLIT_ORDER.index(one.split), -one.row))
    problem = "repeated" if len(classes) == 1 else "in two splits"
    detail = f"also {kept.image}" if len(classes) == 1 else f"also {kept.image}, in {kept.split}"
    return [one.finding(problem, detail) for one in group if one is not kept]


__all__ = ["MIN_SIDE", "Finding", "inspect_images", "leave_out"]
