"""Loads fine-grained classification data sets by name.

The first entry of this list that matches the name is used:

- "drawn": the built-in data set of [`synthetic_fgvc`] with its default sizes;
- "cub200" (CUB-200-2011), "stanford_cars", "fgvc_aircraft" (2013b): the official folder `data_dir`, its parent folder
  or its archive; without `data_dir` a copy on the Hub. A warning is logged if its size differs from the official one.
  Classes keep the official names and order;
- "imagefolder": the folder or archive `data_dir`, or one per split, `{"train": ..., "validation": ...}`;
- an existing folder or archive; `data_dir` is a folder inside it;
- the id of a data set on the Hub; `data_dir` is a folder inside it.

A folder has the layout `root/{train,validation,test}/<class>/<image>` ("val" and "valid" are accepted for
"validation"), or `root/<class>/<image>` with all images in train. An archive (.tar, .tar.gz, .tgz or .zip) is unpacked
once, into the cache. Folders that only wrap the folder of the data set are skipped. Images are decoded when they are
accessed. For error messages that name the file, cast the column to `Image(decode=False)` and read it with
[`open_image`].

If there is no validation split, one is taken from train (see [`stratified_split`]), even if `splits` does not include
it. FGVC-Aircraft has an official one; `validation_fraction=0` adds it to train, to train on all 6,667 images as in the
papers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from datasets import DatasetDict, concatenate_datasets

from .archives import data_folder
from .fgvc_layouts import AIRCRAFT_LEVELS, OFFICIAL_FGVC, official_counts, read_official
from .fgvc_synthetic import synthetic_fgvc
from .folder import load_image_folder
from .hub import load_hub, standardise
from .image_files import inner_folder
from .official import check_counts
from .reid_tables import is_table
from .splits import SPLITS, take_validation


# Copies of the official splits. Stanford Cars and CUB have the official class order there.
_HUB_IDS = {
    "cub200": "bentrevett/caltech-ucsd-birds-200-2011",
    "stanford_cars": "tanganke/stanford_cars",
    "fgvc_aircraft": "Donghyun99/FGVC-Aircraft",
}
_HUB_AIRCRAFT_COLUMNS = {"variant": "variation", "family": "label", "manufacturer": "manufacturer"}


def load_fgvc(
    name: str,
    data_dir: str | Path | Mapping[str, str | Path] | None = None,
    *,
    config_name: str | None = None,
    splits: Sequence[str] | None = None,
    validation_fraction: float = 0.15,
    seed: int = 42,
    image_column: str = "image",
    label_column: str = "label",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    max_unpacked_bytes: int | None = None,
    warn_duplicates: bool = True,
) -> DatasetDict:
    """Loads a classification data set as splits of images and labels.

    See [`dcal_hf.data.fgvc`] for the names, the layouts and the validation split.

    Args:
        name (`str`): "drawn", "cub200", "stanford_cars", "fgvc_aircraft", "imagefolder", a folder, or a Hub ID.
        data_dir (`str`, `Path` or `Mapping`, *optional*): The folder or archive, or one per split.
        config_name (`str`, *optional*): Configuration of a data set on the Hub; for "fgvc_aircraft" the level of the
            classes: "variant" (100 classes, the default), "family" (70) or "manufacturer" (30).
        splits (sequence of `str`, *optional*): Which of train, validation and test to return. All of these must exist.
            By default all existing splits are returned.
        validation_fraction (`float`, *optional*, defaults to 0.15), seed (`int`, *optional*, defaults to 42):
            Fraction of train, in [0, 1), to use for validation if there is no such split, and the seed of this split.
        image_column, label_column (`str`, *optional*): Columns (labels as `ClassLabel`, strings or integers) of a data
            set given by its id on the Hub.
        revision (`str`, *optional*), token (`str` or `bool`, *optional*): Branch, tag or commit on the Hub; its token.
        cache_dir (`str` or `Path`, *optional*): Cache for data sets from the Hub and for unpacked archives.
        max_unpacked_bytes (`int`, *optional*): As in [`data_folder`].
        warn_duplicates (`bool`, *optional*, defaults to `True`): Whether to warn if a folder has the same image in two
            classes or splits. [`inspect_images`] checks this for any data set.

    Returns:
        `datasets.DatasetDict`: train, validation and, if present, test, each with the columns image (`datasets.Image`,
        RGB) and label (`ClassLabel`, the same in every split).

    Raises:
        FileNotFoundError: If `name` is not found, or a file of an official folder is missing. The message names it.
        ValueError: If a split, column or class folder is missing or unusable, or an archive cannot be unpacked.
    """
    _check_arguments(name, splits, validation_fraction)
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
    unpack = partial(data_folder, cache_dir=cache_dir, max_unpacked_bytes=max_unpacked_bytes)
    if name == "drawn":
        dataset, where = synthetic_fgvc(), name
    elif name in OFFICIAL_FGVC:
        dataset, where = _load_official(name, data_dir, config_name, splits, unpack, validation_fraction == 0, **hub)
    elif name == "imagefolder" or Path(name).expanduser().exists():
        dataset, where = _load_folder(name, data_dir, unpack, warn_duplicates)
    else:
        dataset = load_hub(name, config_name, data_dir=None if data_dir is None else str(data_dir), **hub)
        dataset, where = standardise(dataset, name, splits, image_column, label_column), name
    return _choose_splits(dataset, where, splits, validation_fraction, seed)


def _check_arguments(name: str, splits: Sequence[str] | None, validation_fraction: float) -> None:
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, not {validation_fraction}")
    unknown = [split for split in splits or () if split not in SPLITS]
    if unknown:
        raise ValueError(f"there is no split {unknown[0]!r}; splits can be {', '.join(SPLITS)}")
    if is_table(name):
        raise ValueError(
            f"{name} is a table, which only re-identification reads (dcal reid, load_reid): give classes as a folder "
            "with train/<class>/<image>"
        )


def _choose_splits(
    dataset: DatasetDict, where: str, splits: Sequence[str] | None, validation_fraction: float, seed: int
) -> DatasetDict:
    """The requested splits, with a part of train as validation if there is none."""
    if "validation" not in dataset and validation_fraction > 0:
        dataset = take_validation(dataset, where, validation_fraction, seed)
    missing = [split for split in splits or () if split not in dataset]
    if missing:
        raise ValueError(f"{where} has no split {missing[0]!r}, which splits requests; it has {', '.join(dataset)}")
    return DatasetDict({split: dataset[split] for split in splits or SPLITS if split in dataset})


def _load_official(
    name: str,
    data_dir: str | Path | Mapping[str, str | Path] | None,
    level: str | None,
    splits: Sequence[str] | None,
    unpack: Callable[[Path], Path],
    trains_on_validation: bool,
    **hub: str | bool | Path | None,
) -> tuple[DatasetDict, str]:
    """Loads a published data set, and returns it with its source.

    With `trains_on_validation`, an official validation split becomes a part of train.
    """
    if isinstance(data_dir, Mapping):
        raise ValueError(f"{name!r} is read from one official folder or archive, not from one per split; set data_dir")
    if name != "fgvc_aircraft" and level is not None:
        raise ValueError(f"{name!r} has no configuration {level!r}; only 'fgvc_aircraft' has some; leave it out")
    level = level or "variant"
    if level not in AIRCRAFT_LEVELS:
        raise ValueError(f"'fgvc_aircraft' has no configuration {level!r}; it has {', '.join(AIRCRAFT_LEVELS)}")
    counts = official_counts(name, level)
    if data_dir is None:
        dataset, where = _official_from_hub(name, level, splits, **hub), _HUB_IDS[name]
    else:
        wanted = [split for split in counts if split != "test" or splits is None or split in splits]
        folder = unpack(Path(data_dir).expanduser())
        dataset, where = read_official(name, folder, wanted, level), str(data_dir)
    found = {split: (len(set(part["label"][:])), len(part)) for split, part in dataset.items() if split in counts}
    check_counts(name, where, found, counts, "classes")
    if trains_on_validation and "validation" in dataset:
        dataset["train"] = concatenate_datasets([dataset["train"], dataset.pop("validation")])
    return dataset, where


def _official_from_hub(
    name: str, level: str, splits: Sequence[str] | None, **hub: str | bool | Path | None
) -> DatasetDict:
    try:
        dataset = load_hub(_HUB_IDS[name], None, **hub)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"without data_dir (the official folder or archive), {name!r} is loaded from the Hub: {error}"
        ) from error
    if name != "fgvc_aircraft":
        return standardise(dataset, _HUB_IDS[name], splits, "image", "label")
    # The official class lists are sorted, but those of this copy are not.
    column = _HUB_AIRCRAFT_COLUMNS[level]
    return standardise(dataset, _HUB_IDS[name], splits, "image", column, sort_classes=True)


def _load_folder(
    name: str,
    data_dir: str | Path | Mapping[str, str | Path] | None,
    unpack: Callable[[Path], Path],
    warn_duplicates: bool,
) -> tuple[DatasetDict, str]:
    """Loads a folder, or one per split, and returns it with its source."""
    root = _roots(name, data_dir, unpack)
    where = ", ".join(map(str, root.values())) if isinstance(root, Mapping) else str(root)
    return load_image_folder(root, warn_duplicates), where


def _roots(
    name: str, data_dir: str | Path | Mapping[str, str | Path] | None, unpack: Callable[[Path], Path]
) -> Path | dict[str, Path]:
    """The folder of the data set, or one per split."""
    if name == "imagefolder" and data_dir is None:
        raise ValueError("'imagefolder' needs data_dir, a folder with train/<class>/<image>")
    base = Path("" if name == "imagefolder" else name).expanduser()
    if isinstance(data_dir, Mapping):
        return {split: unpack(base / Path(part).expanduser()) for split, part in data_dir.items()}
    return inner_folder(unpack(base / Path(data_dir or "").expanduser()))


__all__ = ["load_fgvc"]
