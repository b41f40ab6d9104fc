"""Splits of classification data sets: their names, their classes, and a validation split taken from train."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict


SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


def split_aliases(present: Collection[str], where: str | Path) -> dict[str, str]:
    """Finds train and, if present, validation and test among the names of splits or folders.

    Args:
        present (collection of `str`): The names.
        where (`str` or `Path`): The data set, for error messages.

    Returns:
        `dict[str, str]`: maps "train", "validation" and "test" to the names found.

    Raises:
        ValueError: If there is no train split, or more than one validation split.
    """
    found = {split: [alias for alias in aliases if alias in present] for split, aliases in SPLITS.items()}
    if not found["train"]:
        raise ValueError(f"{where} has no train split; it has {', '.join(present)}")
    if len(found["validation"]) > 1:
        raise ValueError(f"{where} has both {' and '.join(found['validation'])}; keep or rename one of them")
    return {split: aliases[0] for split, aliases in found.items() if aliases}


def check_classes(classes: dict[str, list[str]], where: str | Path) -> None:
    """Checks that validation and test contain no class that is missing in train.

    Args:
        classes (`dict[str, list[str]]`): For every split, the class name of each row.
        where (`str` or `Path`): The data set, for the error message.

    Raises:
        ValueError: If a split does. The message names the split and the class.
    """
    known = set(classes["train"])
    for split, names in classes.items():
        unknown = sorted(set(names) - known)
        if unknown:
            raise ValueError(
                f"{split} of {where} contains the class {unknown[0]!r}, which train lacks ({len(unknown)} such in "
                "total); add it to train or remove it"
            )


def class_indices(names: Sequence[str], label: ClassLabel) -> list[int]:
    """Index of each class name in `label`."""
    index = {name: number for number, name in enumerate(label.names)}
    return [index[name] for name in names]


def with_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """Renumbers the column label to match the classes of a model by name.

    Args:
        dataset (`datasets.Dataset`): A data set with the column label, a `ClassLabel`.
        names (sequence of `str`): The classes of the model, including all classes of the data set.

    Raises:
        KeyError: If `names` lacks a class of a row.
    """
    feature = dataset.features["label"]
    if feature.names == list(names):
        return dataset
    label = ClassLabel(names=list(names))
    numbers = class_indices(feature.int2str(dataset["label"][:]), label)
    return dataset.remove_columns("label").add_column("label", numbers, feature=label)


def stratified_split(labels: Sequence[int], fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits the items of every class at random.

    From a class of n items, `round(fraction * n)` go to the second part, but at least one and at most n - 1. The item
    of a class with a single one stays in the first part.

    Args:
        labels (sequence of `int`): (N,) class of each item.
        fraction (`float`): Share of each class in the second part, in (0, 1).
        seed (`int`): Seed of the split.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: ascending int64 indices of the first and the second part, N in total.
    """
    labels = np.asarray(labels)
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        chosen[members[:count]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def take_validation(dataset: DatasetDict, where: str | Path, fraction: float, seed: int) -> DatasetDict:
    """Moves a share of every class from train to a new validation split.

    Raises:
        ValueError: If every class has a single image.
    """
    train, validation = stratified_split(dataset["train"]["label"][:], fraction, seed)
    if len(validation) == 0:
        raise ValueError(
            f"no validation split can be taken from train of {where}: each of its classes has a single image; "
            "add images, or pass validation_fraction=0 to have no validation split"
        )
    parts = {"train": dataset["train"].select(train), "validation": dataset["train"].select(validation)}
    return DatasetDict({**dataset, **parts})


__all__ = [
    "SPLITS",
    "check_classes",
    "class_indices",
    "split_aliases",
    "stratified_split",
    "take_validation",
    "with_classes",
]
