"""Classification data sets from folders of images."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from .duplicates import warn_of_duplicates
from .splits import SPLITS, check_classes, class_indices, split_aliases


logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(".avif .bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split())


def load_image_folder(root: Path | Mapping[str, Path]) -> DatasetDict:
    """Reads `root/{train,validation,test}/<class>/<image>`, or `root/<class>/<image>` as train only.

    Files are listed, not opened. Entries of class folders without an image suffix are skipped with one warning; hidden
    files are skipped silently.

    Args:
        root (`Path` or `Mapping[str, Path]`): An existing folder, or a folder of class folders per split.

    Returns:
        `datasets.DatasetDict`: the existing splits, with the columns image and label. Classes are sorted by name,
        images by path.

    Raises:
        ValueError: If train or the class folders are missing, a class folder is empty, or validation or test contains
            a class that is missing in train.
    """
    skipped: list[Path] = []
    files = {split: _class_files(folder, skipped) for split, folder in _split_folders(root).items()}
    if skipped:
        message = "%d entries in the class folders of %s are not images and were skipped, the first is %s"
        logger.warning(message, len(skipped), root, skipped[0])

    classes = {split: [path.parent.name for path in paths] for split, paths in files.items()}
    check_classes(classes, root)
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
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return Dataset.from_dict({"image": [str(path.resolve()) for path in paths]})


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
    class_folders = [path for path in _visible(folder) if path.is_dir()]
    if not class_folders:
        raise ValueError(f"{folder} holds no class folders; put the images of a class into {folder / '<class>'}")
    files = []
    for class_folder in class_folders:
        entries = _visible(class_folder)
        images = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise ValueError(f"the class folder {class_folder} holds no images; put images right into it or remove it")
        files += images
        skipped += [path for path in entries if path.suffix.lower() not in IMAGE_SUFFIXES]
    return files


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


__all__ = ["IMAGE_SUFFIXES", "labelled_images", "load_image_folder", "unlabelled_images"]
