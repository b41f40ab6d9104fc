"""Classification data sets from folders of images."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from .duplicates import warn_of_duplicates
from .splits import SPLITS, check_classes, class_indices, split_aliases


logger = logging.getLogger(__name__)

# What folders of splits are called, in both tasks.
PARTS = frozenset(alias for aliases in SPLITS.values() for alias in aliases) | {"query", "gallery"}

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .heic .heif .jfif .jpe .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split()
)


def load_image_folder(root: Path | Mapping[str, Path], warn_duplicates: bool = True) -> DatasetDict:
    """Reads `root/{train,validation,test}/<class>/<image>`, or `root/<class>/<image>` as train only.

    Files are listed, not opened. Entries of class folders without an image suffix are skipped with one warning; hidden
    files are skipped silently.

    Args:
        root (`Path` or `Mapping[str, Path]`): An existing folder, or a folder of class folders per split.
        warn_duplicates (`bool`, *optional*, defaults to `True`): Whether to look for the same image in two classes or
            splits; see [`warn_of_duplicates`].

    Returns:
        `datasets.DatasetDict`: the existing splits, with the columns image and label. Classes are sorted by name,
        images by path.

    Raises:
        ValueError: If train or the class folders are missing, class folders are empty (the message names all), or
            validation or test contains a class that is missing in train.
    """
    skipped: list[Path] = []
    files = {split: _class_files(folder, skipped) for split, folder in _split_folders(root).items()}
    if skipped:
        message = "%d entries in the class folders of %s are not images and were skipped, the first is %s"
        logger.warning(message, len(skipped), root, skipped[0])

    classes = {split: [path.parent.name for path in paths] for split, paths in files.items()}
    check_classes(classes, root)
    if warn_duplicates:
        rows = [(str(path), path.parent.name, split) for split, paths in files.items() for path in paths]
        warn_of_duplicates(*zip(*rows), root)
    label = ClassLabel(names=sorted(set(classes["train"])))
    dataset = DatasetDict()
    for split, paths in files.items():
        dataset[split] = labelled_images(list(map(str, paths)), class_indices(classes[split], label), label, split)
    return dataset


def unlabelled_images(folder: Path) -> Dataset:
    """All images in the folder and its visible subfolders, sorted by path, in the column image.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it contains no images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder of images {folder} does not exist.")
    paths = images_below(folder)
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return Dataset.from_dict({"image": [str(path.resolve()) for path in paths]})


def images_below(folder: Path) -> list[Path]:
    """All images in the folder and its visible subfolders, sorted by path."""
    return sorted(
        path
        for path in folder.rglob("*")
        if is_image_name(path) and all(map(is_visible, path.relative_to(folder).parts))
    )


def is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_visible(name: str) -> bool:
    """Neither hidden nor the folder of metadata that macOS adds to archives; its `._` files are hidden."""
    return not name.startswith(".") and name != "__MACOSX"


def visible(folder: Path) -> list[Path]:
    """The visible entries of a folder, sorted by path."""
    return sorted(path for path in folder.iterdir() if is_visible(path.name))


def inner_folder(root: Path) -> Path:
    """The folder itself, or the one inside it that holds the data set, if an unpacker has put nothing else around it.

    A folder is taken for such a wrapper if its only entry is a folder of nothing but folders. A folder of splits is
    none, even if it has only one.
    """
    while True:
        entries = visible(root)
        if len(entries) != 1 or not entries[0].is_dir() or entries[0].name in PARTS:
            return root
        inner = visible(entries[0])
        if not inner or not all(entry.is_dir() for entry in inner):
            return root
        logger.info("%s holds nothing but the folder %s, which is read in its place", root, entries[0].name)
        root = entries[0]


def misplaced_images(paths: Sequence[str]) -> list[Path]:
    """The images that are not read because they lie beside the class folders, or in folders inside of these.

    Args:
        paths (sequence of `str`): All images that are read, `.../<class>/<image>`.

    Returns:
        `list[Path]`: the others, sorted within each folder.
    """
    class_folders = sorted({Path(path).parent for path in paths})
    tops = {folder.parent for folder in class_folders}
    tops |= {top.parent for top in tops if top.name in PARTS}
    beside = [path for top in sorted(tops) for path in visible(top) if is_image_name(path) and path.is_file()]
    inner = [path for folder in class_folders for path in visible(folder) if path.is_dir()]
    return beside + [path for folder in inner for path in images_below(folder)]


def empty_folders(noun: str, folders: Sequence[Path]) -> str:
    """The message of an error: what the first of these class folders without images holds, and the others' names."""
    first, *others = folders
    nested = [path.name for path in visible(first) if path.is_dir()]
    message = f"the {noun} folder {first} holds no images; put images right into it or remove it"
    if nested:
        message = (
            f"the {noun} folder {first} holds no images, but folders ({', '.join(nested[:3])}"
            f"{', ...' if len(nested) > 3 else ''}); put the images right into it, or, if these are the {noun} "
            "folders, move them up"
        )
    if others:
        names = ", ".join(path.name for path in others[:10])
        message += f". {len(others)} more hold none: {names}{', ...' if len(others) > 10 else ''}"
    return message


def labelled_images(paths: Sequence[str], labels: Sequence[int], label: ClassLabel, split: str) -> Dataset:
    """A split with the columns image and label, whose files are opened when they are accessed."""
    features = Features({"image": Image(mode="RGB"), "label": label})
    return Dataset.from_dict({"image": list(paths), "label": list(labels)}, features=features, split=split)


def _split_folders(root: Path | Mapping[str, Path]) -> dict[str, Path]:
    if isinstance(root, Mapping):
        return dict(root)
    present = [alias for aliases in SPLITS.values() for alias in aliases if (root / alias).is_dir()]
    if not present:
        return {"train": root}
    return {split: root / alias for split, alias in split_aliases(present, root).items()}


def _class_files(folder: Path, skipped: list[Path]) -> list[Path]:
    """Images of the class folders in `folder`, in order. Other entries are added to `skipped`."""
    class_folders = [path for path in visible(folder) if path.is_dir()]
    if not class_folders:
        raise ValueError(f"{folder} holds no class folders; put the images of a class into {folder / '<class>'}")
    files, empty = [], []
    for class_folder in class_folders:
        entries = visible(class_folder)
        images = list(filter(is_image_name, entries))
        if not images:
            empty.append(class_folder)
        files += images
        skipped += [path for path in entries if not is_image_name(path)]
    if empty:
        raise ValueError(empty_folders("class", empty))
    return files


__all__ = [
    "IMAGE_SUFFIXES",
    "PARTS",
    "empty_folders",
    "images_below",
    "inner_folder",
    "is_image_name",
    "labelled_images",
    "load_image_folder",
    "misplaced_images",
    "unlabelled_images",
    "visible",
]
