"""Custom re-identification data sets: their rows, and folders of identities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Features, Image

from .image_files import folder_name, images_by_name, split_folders
from .reid_layouts import REID_SPLITS


PART_NAMES = (*REID_SPLITS, "test")
IMAGE_FEATURE = Image(mode="RGB")
UNKNOWN = "unknown"


@dataclass
class Rows:
    """Images and their annotations.

    Args:
        images (`datasets.Dataset`): A data set with the single column image.
        keys (list of `str`): Equal for rows of the same image, or of the same part of it.
        identities (list of `str`): Identity of each image; `"unknown"` if nobody identified the individual.
        cameras (list of `str`, *optional*): Camera of each image.
        parts (list of `str`, *optional*): Split of each image, one of `PART_NAMES`.
        paths (list of `str`, *optional*): Path of each image; None if the rows contain encoded images.
        boxes (list, *optional*): The part of each image to read, `[x, y, width, height]`, or None for all of it.
        days (list of `str`, *optional*): The day of each image as `"2024-05-31"`, `""` if it is not known.
    """

    images: Dataset
    keys: list[str]
    identities: list[str]
    cameras: list[str] | None = None
    parts: list[str] | None = None
    paths: list[str] | None = None
    boxes: list[list[float] | None] | None = None
    days: list[str] | None = None


def read_identity_folder(root: Path) -> Rows:
    """Reads `root/{train,query,gallery}/<identity>/<image>`, or `root/<identity>/<image>`.

    Files are listed, not opened. Files without an image suffix are skipped with one warning, hidden files silently.

    Raises:
        ValueError: if there are no identity folders, or some of them have no images; the message names all of these.
            Also if two splits have the same name but for its case.
    """
    present = split_folders(root, PART_NAMES)
    files = images_by_name(present.values() or [root], "identity", root)
    paths = [path for listed in files for path in listed]
    keys = [str(path) for path in paths]
    return Rows(
        images=image_dataset(keys),
        keys=keys,
        identities=[folder_name(path) for path in paths],
        parts=[part for part, listed in zip(present, files) for _ in listed] if present else None,
        paths=keys,
    )


def image_dataset(paths: Sequence[str]) -> Dataset:
    """A data set with the single column image, from file paths."""
    return Dataset.from_dict({"image": list(paths)}, features=Features({"image": IMAGE_FEATURE}))


__all__ = ["IMAGE_FEATURE", "PART_NAMES", "UNKNOWN", "Rows", "image_dataset", "read_identity_folder"]
