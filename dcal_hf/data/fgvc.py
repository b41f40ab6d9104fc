"""Fine-grained classification sets by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import DatasetDict

from .drawn import drawn_fgvc
from .folder import load_image_folder
from .hub import load_hub, standardise
from .splits import SPLITS, take_validation


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
) -> DatasetDict:
    """Loads a classification set as splits of images and labels.

    A folder is laid out as `root/{train,validation,test}/<class>/<image>` ("val" and "valid" are read as
    "validation"), or as `root/<class>/<image>`, which is all train. Images are decoded when they are read, not here;
    cast the column to `Image(decode=False)` and read it with [`open_image`] for errors that name the file.

    Where there is no validation split, one is taken from train, see [`stratified_split`], whichever `splits` are asked
    for.

    Args:
        name (`str`): What to load, the first that fits:

            - "drawn": the built-in set of [`drawn_fgvc`] with its default sizes;
            - "imagefolder": the folder `data_dir`;
            - an existing folder;
            - the id of a data set on the Hub.
        data_dir (`str`, `Path` or `Mapping`, *optional*):
            The folder for "imagefolder", or one per split: `{"train": ..., "validation": ...}`; else a folder inside
            `name`.
        config_name (`str`, *optional*): Configuration of a set on the Hub that has several.
        splits (sequence of `str`, *optional*): Which of train, validation and test to return, all of them required.
            By default what there is.
        validation_fraction (`float`, *optional*, defaults to 0.15):
            Part of train, in [0, 1), that becomes validation where there is none; 0 takes nothing.
        seed (`int`, *optional*, defaults to 42): Seed of that choice.
        image_column (`str`, *optional*, defaults to "image"): Name of the images in a set on the Hub.
        label_column (`str`, *optional*, defaults to "label"): Name of the class (`ClassLabel`, string, integer) there.
        revision (`str`, *optional*): Branch, tag or commit of a set on the Hub.
        token (`str` or `bool`, *optional*): Hub token.
        cache_dir (`str` or `Path`, *optional*): Where a set from the Hub is cached.

    Returns:
        `datasets.DatasetDict`: train, validation and, where the set has one, test, each with the columns image
        (`datasets.Image`, RGB) and label (`ClassLabel`, the same in every split).

    Raises:
        FileNotFoundError: if `name` is neither a folder nor a set the Hub can give.
        ValueError: if a split, a column or a class folder is missing, a class folder is empty, a row has no label, or
            validation or test holds a class that train lacks.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, not {validation_fraction}")
    unknown = [split for split in splits or () if split not in SPLITS]
    if unknown:
        raise ValueError(f"there is no split {unknown[0]!r}; splits may hold {', '.join(SPLITS)}")

    where = name
    if name == "drawn":
        dataset = drawn_fgvc()
    elif name == "imagefolder" or Path(name).expanduser().is_dir():
        if isinstance(data_dir, Mapping):
            root = {split: _root(name, folder) for split, folder in data_dir.items()}
            where = ", ".join(map(str, root.values()))
        else:
            root = _root(name, data_dir)
            where = str(root)
        dataset = load_image_folder(root)
    else:
        subfolder = None if data_dir is None else str(data_dir)
        dataset = load_hub(name, config_name, data_dir=subfolder, revision=revision, token=token, cache_dir=cache_dir)
        dataset = standardise(dataset, name, splits, image_column, label_column)

    if "validation" not in dataset and validation_fraction > 0:
        dataset = take_validation(dataset, where, validation_fraction, seed)
    missing = [split for split in splits or () if split not in dataset]
    if missing:
        raise ValueError(f"{where} has no split {missing[0]!r}, which splits asks for; it has {', '.join(dataset)}")
    return DatasetDict({split: dataset[split] for split in splits or SPLITS if split in dataset})


def _root(name: str, data_dir: str | Path | None) -> Path:
    if name == "imagefolder" and data_dir is None:
        raise ValueError("'imagefolder' needs data_dir, the folder that holds train/<class>/<image>")
    base = Path("" if name == "imagefolder" else name).expanduser()
    root = base / Path(data_dir or "").expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"the folder {root} does not exist; check data_dir")
    return root


__all__ = ["load_fgvc"]
