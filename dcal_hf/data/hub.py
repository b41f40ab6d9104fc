"""Classification data sets from the Hub, converted to the columns image and label."""

from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Image, Value, load_dataset
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..errors import counted, first_line
from .splits import check_classes, class_indices, split_aliases


_NAMING_DTYPES = ("string", "large_string", "bool")
_INTEGER_PREFIXES = ("int", "uint")


def load_hub(name: str, config_name: str | None, **source: str | bool | Path | None) -> DatasetDict:
    """Calls `datasets.load_dataset` for a data set on the Hub, with one type of error if it cannot be found.

    Args:
        name (`str`): The repository id.
        config_name (`str` or `None`): The configuration.
        **source: More arguments of `load_dataset`.

    Returns:
        `datasets.DatasetDict`: the data set, unchanged.

    Raises:
        FileNotFoundError: If `name` is not a valid id, or the Hub does not have it or cannot be reached.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{name!r} is neither an existing folder nor the id of a data set on the Hub; check the path"
        ) from error
    try:
        return load_dataset(name, config_name, **source)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{name!r} is not an existing folder, and the Hub has no data set with that id or cannot be reached "
            f"({first_line(error)}); check the path or the id, the token and the connection"
        ) from error


def standardise(
    dataset: DatasetDict,
    where: str,
    splits: Sequence[str] | None,
    image_column: str,
    label_column: str,
    sort_classes: bool = False,
) -> DatasetDict:
    """Converts a data set to the splits and columns of [`load_fgvc`]; other splits and columns are dropped.

    Args:
        dataset (`datasets.DatasetDict`): The data set.
        where (`str`): Its name, for error messages.
        splits (sequence of `str` or `None`): If given without "test", the test split is not read.
        image_column (`str`): A column with the feature `Image`.
        label_column (`str`): A column with the feature `ClassLabel`, whose class order is kept, or with strings or
            integers, which are sorted to form the classes.
        sort_classes (`bool`, *optional*, defaults to `False`): Whether to sort the classes of a `ClassLabel`, too.

    Returns:
        `datasets.DatasetDict`: train and, if present, validation and test, with the columns image and label.

    Raises:
        ValueError: If train or a column is missing, a column has the wrong type, a row has no label, or validation or
            test contains a class that is missing in train.
    """
    aliases = split_aliases(dataset, where)
    if splits is not None and "test" not in splits:
        aliases.pop("test", None)
    dataset = DatasetDict({split: dataset[alias] for split, alias in aliases.items()})
    _check_columns(dataset["train"], where, image_column, label_column)

    classes = {split: _class_names(part, label_column, f"{split} of {where}") for split, part in dataset.items()}
    check_classes(classes, where)
    label = _label_feature(dataset["train"].features[label_column], classes["train"])
    if sort_classes:
        label = ClassLabel(names=sorted(label.names))
    standard = DatasetDict()
    for split, part in dataset.items():
        images = part.select_columns(image_column).rename_columns({image_column: "image"})
        images = images.cast_column("image", Image(mode="RGB"))
        standard[split] = images.add_column("label", class_indices(classes[split], label), feature=label)
    return standard


def _check_columns(train: Dataset, where: str, image_column: str, label_column: str) -> None:
    missing = [column for column in (image_column, label_column) if column not in train.column_names]
    if missing:
        raise ValueError(
            f"{where} has no column {' and no column '.join(map(repr, missing))}; it has "
            f"{', '.join(train.column_names)}: choose among these with image_column and label_column"
        )
    image, label = train.features[image_column], train.features[label_column]
    if not isinstance(image, Image):
        raise ValueError(f"the column {image_column!r} of {where} holds {image}, not images; set image_column")
    names_classes = isinstance(label, Value) and label.dtype.startswith((*_NAMING_DTYPES, *_INTEGER_PREFIXES))
    if not names_classes and not isinstance(label, ClassLabel):
        raise ValueError(
            f"the column {label_column!r} of {where} holds {label}, neither class names nor integers; set label_column"
        )


def _class_names(part: Dataset, label_column: str, where: str) -> list[str]:
    """Class name of each row."""
    feature, values = part.features[label_column], part[label_column][:]
    is_class_label = isinstance(feature, ClassLabel)
    unlabelled = sum(value is None or is_class_label and value < 0 for value in values)
    if unlabelled:
        raise ValueError(
            f"{where} has {counted(unlabelled, 'row')} without a label; set another label_column, remove these rows, "
            "or leave the split out of splits"
        )
    return feature.int2str(values) if is_class_label else [str(value) for value in values]


def _label_feature(feature: ClassLabel | Value, classes: list[str]) -> ClassLabel:
    if isinstance(feature, ClassLabel):
        return ClassLabel(names=feature.names)
    return ClassLabel(names=sorted(set(classes), key=int if feature.dtype.startswith(_INTEGER_PREFIXES) else str))


__all__ = ["load_hub", "standardise"]
