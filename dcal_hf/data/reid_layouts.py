"""Re-identification data sets in their published layouts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..metrics.protocol import JUNK_IDENTITY
from .archives import data_folder
from .image_files import image_files
from .official import check_counts, check_listed, official_root, require


REID_SPLITS = ("train", "query", "gallery")


class Photo(NamedTuple):
    """One image of a published data set."""

    path: str
    identity: int
    camera: int


@dataclass(frozen=True)
class Layout:
    """The published layout of a data set.

    Args:
        tops (tuple of `str`): Possible names of the folder that the archive unpacks to.
        folders (mapping from `str` to `str`): The folder of each split.
        pattern (`str`): Regular expression for the beginning of a file name, with the groups camera and, unless lists
            contain it, identity.
        example (`str`): A file name, for error messages.
        counts (mapping from `str` to `tuple[int, int]`): Number of identities and images of each split.
    """

    tops: tuple[str, ...]
    folders: Mapping[str, str]
    pattern: str
    example: str
    counts: Mapping[str, tuple[int, int]]


_MARKET_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}

# Counts without junk. Market-1501: Zheng et al. 2015; DukeMTMC-reID: Zheng et al. 2017; VeRi-776: Liu et al. 2016.
FOLDER_LAYOUTS: dict[str, Layout] = {
    "market1501": Layout(
        tops=("Market-1501-v15.09.15",),
        folders=_MARKET_FOLDERS,
        pattern=r"(?P<identity>-1|\d+)_c(?P<camera>\d+)s\d+_",
        example="0001_c1s1_001051_00.jpg",
        counts={"train": (751, 12_936), "query": (750, 3_368), "gallery": (751, 15_913)},
    ),
    "dukemtmc": Layout(
        tops=("DukeMTMC-reID",),
        folders=_MARKET_FOLDERS,
        pattern=r"(?P<identity>\d+)_c(?P<camera>\d+)_f\d+",
        example="0001_c2_f0046182.jpg",
        counts={"train": (702, 16_522), "query": (702, 2_228), "gallery": (1_110, 17_661)},
    ),
    "veri776": Layout(
        tops=("VeRi",),
        folders={"train": "image_train", "query": "image_query", "gallery": "image_test"},
        pattern=r"(?P<identity>\d+)_c(?P<camera>\d+)_\d+",
        example="0001_c001_00016450_0.jpg",
        counts={"train": (576, 37_778), "query": (200, 1_678), "gallery": (200, 11_579)},
    ),
}

# MSMT17, Wei et al. 2018: the second version has the same lists over images with masked faces.
_MSMT17 = Layout(
    tops=("MSMT17_V1", "MSMT17_V2"),
    folders={"train": "train", "query": "test", "gallery": "test"},
    pattern=r"[^_]+_[^_]+_(?P<camera>\d+)_",
    example="0000_000_01_0303morning_0015_0.jpg",
    counts={"train": (1_041, 32_621), "query": (3_060, 11_659), "gallery": (3_060, 82_161)},
)
_MSMT17_TRAIN_WITHOUT_VAL = (1_041, 30_248)
_MSMT17_MASKED = {"train": "mask_train_v2", "test": "mask_test_v2"}

OFFICIAL_REID = (*FOLDER_LAYOUTS, "msmt17")


def read_official(
    name: str,
    data_dir: str | Path,
    splits: Sequence[str] = REID_SPLITS,
    include_val: bool = True,
    max_unpacked_bytes: int | None = None,
) -> dict[str, list[Photo]]:
    """Lists the images of a published data set, sorted by file name.

    Identity and camera are parsed from the file name, except for MSMT17, whose lists contain the identity; images are
    not opened. Junk, Market-1501's identity -1, is dropped. A warning is logged if the numbers of identities or images
    differ from the published ones.

    Args:
        name (`str`): One of `OFFICIAL_REID`.
        data_dir (`str` or `Path`): The folder that the archive unpacks to, its parent, or the archive.
        splits (sequence of `str`, *optional*): The splits to read, of train, query and gallery.
        include_val (`bool`, *optional*, defaults to `True`): Whether train of MSMT17 is list_train and list_val, as in
            papers, or only list_train.
        max_unpacked_bytes (`int`, *optional*): As in [`data_folder`].

    Returns:
        `dict[str, list[Photo]]`: the images of each split.

    Raises:
        FileNotFoundError: if a folder, a list, or an image in a list is missing; the message names it.
        ValueError: if a folder has no images, a file name or a row of a list cannot be parsed, or an archive cannot be
            unpacked.
    """
    layout = FOLDER_LAYOUTS.get(name, _MSMT17)
    root = official_root(data_folder(Path(data_dir).expanduser(), max_unpacked_bytes=max_unpacked_bytes), layout.tops)
    counts = dict(layout.counts)
    if name == "msmt17":
        folders = _msmt17_folders(root)
        lists = {split: [root / f"list_{split}.txt"] for split in splits}
        if include_val and "train" in splits:
            lists["train"].append(root / "list_val.txt")
        else:
            counts["train"] = _MSMT17_TRAIN_WITHOUT_VAL
        photos = {split: _read_lists(lists[split], folders[split]) for split in splits}
    else:
        for split in splits:
            require(root / layout.folders[split], layout.tops)
        photos = {split: _read_folder(root / layout.folders[split], layout) for split in splits}
    found = {split: (len({photo.identity for photo in rows}), len(rows)) for split, rows in photos.items()}
    check_counts(name, root, found, counts, "identities")
    return photos


def _read_folder(folder: Path, layout: Layout) -> list[Photo]:
    files = image_files(folder)
    if not files:
        raise ValueError(f"{folder} contains no images; unpack the archive again")
    photos = []
    for path in files:
        match = _parse(path.name, layout, folder)
        photos.append(Photo(str(path), int(match["identity"]), int(match["camera"])))
    return [photo for photo in photos if photo.identity != JUNK_IDENTITY]


def _parse(name: str, layout: Layout, source: Path) -> re.Match:
    match = re.match(layout.pattern, name)
    if match is None:
        raise ValueError(
            f"the file name {name!r} in {source} is not of the form of {layout.example!r}; remove the file, or check "
            "that this is the requested data set"
        )
    return match


def _msmt17_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, for the first or the second version of MSMT17."""
    masked = (root / _MSMT17_MASKED["train"]).is_dir()
    names = {split: _MSMT17_MASKED[name] if masked else name for split, name in _MSMT17.folders.items()}
    return {split: root / name for split, name in names.items()}


def _read_lists(lists: Sequence[Path], folder: Path) -> list[Photo]:
    """Reads MSMT17's lists: rows `0000/0000_000_01_0303morning_0015_0.jpg 0` with paths relative to `folder`."""
    photos = []
    for path in lists:
        for entry in (path, folder):
            require(entry, _MSMT17.tops)
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        rows = [_parse_row(line, path, folder) for line in lines if line.strip()]
        if not rows:
            raise ValueError(f"{path} is empty; unpack the archive again")
        check_listed([photo.path for photo in rows], path)
        photos += rows
    return sorted(photos)


def _parse_row(row: str, source: Path, folder: Path) -> Photo:
    match = re.fullmatch(r"(?P<path>\S.*?)\s+(?P<identity>\d+)", row.strip())
    if match is None:
        raise ValueError(f"the row {row!r} of {source} is not of the form '0000/{_MSMT17.example} 0'")
    camera = _parse(Path(match["path"]).name, _MSMT17, source)["camera"]
    return Photo(str(folder / match["path"]), int(match["identity"]), int(camera))


__all__ = ["OFFICIAL_REID", "REID_SPLITS", "Photo", "read_official"]
