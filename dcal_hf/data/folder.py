"""Classification data sets from folders of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from .duplicates import warn_of_duplicates
from .image_files import IMAGE_SUFFIXES, folder_name, image_files, images_by_name, split_folders
from .splits import SPLITS, check_classes, class_indices, split_aliases


def load_image_folder(root: Path | Mapping[str, Path], warn_duplicates: bool = True) -> DatasetDict:
    """Reads `root/{train,validation,test}/<class>/<image>`, or `root/<class>/<image>` as train only.

    Files are listed, not opened. Entries of class folders without an image suffix are skipped with one warning; hidden
    files are skipped silently.

    Args:
        root (`Path` or `Mapping[str, Path]`): An existing folder, or a folder of class folders per split.
        warn_duplicates (`bool`, *optional*, defaults to `True`): Whether to warn of the same image in two classes or
            splits; see [`warn_of_duplicates`].

    Returns:
        `datasets.DatasetDict`: the existing splits, with the columns image and label. Classes are sorted by name,
        images by path.

    Raises:
        ValueError: If train or the class folders are missing, class folders are empty (the message names all), or
            validation or test contains a class that is missing in train.
    """
    folders = _folder_of_each_split(root)
    files = dict(zip(folders, images_by_name(folders.values(), "class", root)))
    classes = {split: [folder_name(path) for path in paths] for split, paths in files.items()}
    check_classes(classes, root)
    if warn_duplicates:
        rows = [(str(path), name, split) for split in files for path, name in zip(files[split], classes[split])]
        warn_of_duplicates(*zip(*rows), root)
    label = ClassLabel(names=sorted(set(classes["train"])))
    dataset = DatasetDict()
    for split, paths in files.items():
        dataset[split] = labelled_images(list(map(str, paths)), class_indices(classes[split], label), label, split)
    return dataset


def unlabelled_images(folder: Path) -> Dataset:
    """All images in the folder and its visible subfolders, sorted by path, in the column image.

    Raises:
        FileNotFoundError, ValueError: As [`images_below`].
    """
    return Dataset.from_dict({"image": [str(path.resolve()) for path in images_below(folder)]})


def images_below(folder: Path) -> list[Path]:
    """All images in the folder and its visible subfolders, sorted by path.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it contains no images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder of images {folder} does not exist.")
    paths = image_files(folder, recursive=True)
    if not paths:
        raise ValueError(f"{folder} contains no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return paths


def labelled_images(paths: Sequence[str], labels: Sequence[int], label: ClassLabel, split: str) -> Dataset:
    """A split with the columns image and label, whose files are opened when they are accessed."""
    features = Features({"image": Image(mode="RGB"), "label": label})
    return Dataset.from_dict({"image": list(paths), "label": list(labels)}, features=features, split=split)


def _folder_of_each_split(root: Path | Mapping[str, Path]) -> dict[str, Path]:
    if isinstance(root, Mapping):
        return dict(root)
    present = split_folders(root, [alias for aliases in SPLITS.values() for alias in aliases])
    if not present:
        return {"train": root}
    return {split: present[alias] for split, alias in split_aliases(present, root).items()}


__all__ = ["images_below", "labelled_images", "load_image_folder", "unlabelled_images"]
