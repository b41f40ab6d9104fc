# /// script
# dependencies = ["dcal_hf"]
# ///
"""Adds images to a gallery created by recipes/embed.py, removes images from it, or shows its content.

    python recipes/gallery.py show --gallery_dir gallery
    python recipes/gallery.py add --gallery_dir gallery --model_name_or_path out --images new.jpg more_photographs
    python recipes/gallery.py remove --gallery_dir gallery --images old.jpg

If a gallery has other columns, such as identity, `--columns` gives their values for added images, and selects images
to remove. A bbox, `[x, y, width, height]` in pixels, says which part of an image to embed:

    python recipes/gallery.py add --gallery_dir gallery --model_name_or_path out --images berta --columns \
        '{"identity": "Berta"}'
    python recipes/gallery.py remove --gallery_dir gallery --columns '{"identity": "Berta"}'

The gallery is replaced once the new one is complete. Image files are neither copied nor deleted.
"""

if __name__ == "__main__":
    from cli import run_script

    # Imports this file as a module, unless only its help is asked for, because the imports below take seconds.
    raise SystemExit(run_script(__file__))

import json
import logging
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arguments import json_option, parse_arguments, require_at_least
from common import set_up_logging
from datasets import ClassLabel, Dataset, Features, Value
from embed import CheckpointArguments, readable_rows
from loading import load_checkpoint
from predict import find_images

from dcal_hf.errors import counted
from dcal_hf.retrieval import GalleryIndex, embed_images, model_fingerprint


@dataclass
class GalleryFolder:
    """Gallery."""

    gallery_dir: str = field(metadata={"help": "Folder of the gallery."})


@dataclass
class AddArguments(GalleryFolder):
    """Images to add."""

    images: list[str] = field(metadata={"help": "Photographs or folders of photographs."})
    columns: str = field(
        default="{}", metadata={"help": "Values of the other columns, for all of these images, as JSON."}
    )
    skip_broken: bool = field(default=False, metadata={"help": "Skip unreadable images with a warning."})


@dataclass
class RemoveArguments(GalleryFolder):
    """Images to remove, given in one of three ways."""

    images: list[str] | None = field(default=None, metadata={"help": "Image files, or folders of images."})
    rows: list[int] | None = field(default=None, metadata={"help": "Rows, as show and recipes/search.py print them."})
    columns: str = field(default="{}", metadata={"help": "Values of columns as JSON, which all must have."})

    def __post_init__(self):
        if (self.images is not None) + (self.rows is not None) + (self.columns != "{}") != 1:
            raise ValueError("Name the images to remove by one of --images, --rows and --columns.")


@dataclass
class ShowArguments(GalleryFolder):
    """Rows to show."""

    start: int = field(default=0, metadata={"help": "First row to print."})
    count: int = field(default=10, metadata={"help": "Number of rows to print."})

    def __post_init__(self):
        require_at_least(0, self, "start", "count")


EXAMPLE = '{"identity": "Berta"}'
ARGUMENTS = {
    "add": (AddArguments, CheckpointArguments),
    "remove": (RemoveArguments,),
    "show": (ShowArguments,),
}


def main() -> None:
    program, *arguments = sys.argv
    command = arguments[0] if arguments else ""
    if command not in ARGUMENTS:
        raise ValueError(f"Give one of {', '.join(ARGUMENTS)} first: dcal gallery show --gallery_dir gallery.")
    sys.argv = [f"{program} {command}", *arguments[1:]]
    set_up_logging(logging.WARNING)
    {"add": add, "remove": remove, "show": show}[command](*parse_arguments(ARGUMENTS[command]))


def add(args: AddArguments, checkpoint_args: CheckpointArguments) -> None:
    """Adds the images that are not in the gallery yet, or the part `bbox` of each, if there is such a column."""
    given = list(dict.fromkeys(str(Path(path).resolve()) for path in find_images(args.images)))
    model, processor = load_checkpoint(checkpoint_args)
    gallery = GalleryIndex.load(args.gallery_dir, model_fingerprint(model))
    values = read_columns(args.columns, gallery.items.features)
    missing = [name for name in gallery.items.column_names if name not in ("image", "bbox", *values)]
    if missing:
        example = json.dumps({name: "..." for name in missing})
        raise ValueError(f"The gallery has the column {missing[0]}, too: give its value by --columns '{example}'.")
    if "bbox" in gallery.items.column_names:
        values.setdefault("bbox", None)
    known = {path for path, box in zip(paths(gallery), boxes(gallery)) if box == values.get("bbox")}
    new = [path for path in given if path not in known]
    present = len(given) - len(new)
    if new:
        parts = {"bbox": [values["bbox"]] * len(new)} if "bbox" in values else {}
        images = Dataset.from_dict({"image": new, **parts})
        embeddings = embed_images(
            model, processor, images, skip_broken=args.skip_broken, **checkpoint_args.reader_kwargs
        )
        kept = readable_rows(embeddings)
        new = [new[row] for row in kept]
    if new:
        add_class_names(gallery, values)
        features = gallery.items.features
        records = {"image": [as_image(path, gallery) for path in new]}
        records |= {name: [value] * len(new) for name, value in class_numbers(values, features).items()}
        gallery.add(embeddings[kept], Dataset.from_dict(records, features=features))
        gallery.save(args.gallery_dir)
    why = left_out(present, broken=len(given) - present - len(new))
    print(f"Added {len(new):,} of {counted(len(given), 'image')}{why}; {args.gallery_dir} has {len(gallery):,} now.")


def left_out(present: int, broken: int) -> str:
    """Why images were not added, as numbers of images."""
    counts = [f"{counted(present, 'is', 'are')} in the gallery already"] if present else []
    counts += [f"{broken:,} cannot be read"] if broken else []
    return f" ({', '.join(counts)})" if counts else ""


def add_class_names(gallery: GalleryIndex, values: dict[str, Any]) -> None:
    """Adds names of classes, such as new individuals, which the gallery lacks; the numbers of the others stay."""
    features = gallery.items.features.copy()
    for name, value in values.items():
        if isinstance(features[name], ClassLabel) and isinstance(value, str) and value not in features[name].names:
            features[name] = ClassLabel(names=[*features[name].names, value])
            print(f"{name} {value!r} is new.")
    if features != gallery.items.features:
        gallery.items = gallery.items.cast(features)


def remove(args: RemoveArguments) -> None:
    """Removes the given images, all of which must be in the gallery."""
    gallery = GalleryIndex.load(args.gallery_dir)
    rows = chosen_rows(gallery, args)
    if len(rows) == len(gallery):
        raise ValueError(f"These are all images of {args.gallery_dir}: delete the folder instead.")
    gallery.remove(rows)
    gallery.save(args.gallery_dir)
    print(f"Removed {counted(len(rows), 'image')}; {args.gallery_dir} has {len(gallery):,} now.")


def chosen_rows(gallery: GalleryIndex, args: RemoveArguments) -> list[int]:
    """
    Raises:
        ValueError: If a row, an image or a value is not in the gallery.
    """
    if args.rows is not None:
        outside = [row for row in args.rows if not 0 <= row < len(gallery)]
        if outside:
            raise ValueError(f"--rows {outside[0]}: {args.gallery_dir} has the rows 0 to {len(gallery) - 1}.")
        return sorted(set(args.rows))
    if args.images is not None:
        found = set()
        for name in args.images:
            path = Path(name).resolve()
            own = [row for row, image in enumerate(paths(gallery)) if path in (Path(image), *Path(image).parents)]
            if not own:
                raise ValueError(f"--images {name}: {args.gallery_dir} has no image of that path or in such a folder.")
            found.update(own)
        return sorted(found)
    values = class_numbers(read_columns(args.columns, gallery.items.features), gallery.items.features)
    columns = [gallery.items[name][:] for name in values]
    rows = [row for row, found in enumerate(zip(*columns)) if list(found) == list(values.values())]
    if not rows:
        raise ValueError(f"--columns {args.columns}: {args.gallery_dir} has no image with these values.")
    return rows


def show(args: ShowArguments) -> None:
    """Prints the model and index of the gallery, its most frequent values, and some rows."""
    gallery = GalleryIndex.load(args.gallery_dir)
    others = [name for name in gallery.items.column_names if name != "image"]
    print(
        f"{args.gallery_dir}: {counted(len(gallery), 'image')}, {gallery.dimension} numbers each, by "
        f"{gallery.model_name or 'a model'} ({gallery.model_id}); {gallery.metric} distance, index {gallery.factory}"
    )
    gone = [path for path in paths(gallery) if path and Path(path).is_absolute() and not Path(path).exists()]
    if gone:
        print(f"{counted(len(gone), 'image file is', 'image files are')} gone, the first is {gone[0]}")
    for name in (name for name in others if name != "bbox"):
        counts = Counter(named(gallery.items.features, name, value) for value in gallery.items[name][:])
        most = ", ".join(f"{value} ({count:,})" for value, count in counts.most_common(5))
        print(f"{name}: {len(counts):,} different, most often {most}")
    print(f"{'row':>8}  {', '.join(['image', *others])}")
    for row in range(args.start, min(args.start + args.count, len(gallery))):
        print(f"{row:>8}  {', '.join(map(str, describe(gallery.items[row], gallery.items.features)))}")


def read_columns(text: str, features: Features) -> dict[str, Any]:
    """The values of columns from JSON.

    Raises:
        ValueError: If it is no such JSON, or the gallery has no such column.
    """
    values = json_option("columns", text, EXAMPLE)
    for name in values:
        if name not in features or name == "image":
            others = ", ".join(column for column in features if column != "image") or "none but image"
            raise ValueError(f"--columns: the gallery has no column {name!r}; it has {others}.")
    box = values.get("bbox")
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(side, (int, float)) for side in box)
    if box is not None and not is_box:
        raise ValueError(
            f"--columns: bbox is [x, y, width, height] in pixels, or null for the whole image, not {box!r}."
        )
    return values


def class_numbers(values: dict[str, Any], features: Features) -> dict[str, Any]:
    """
    Args:
        values (`dict`): Values of columns; those that are names of classes are replaced by their numbers, and numbers
            written as text by numbers.

    Raises:
        ValueError: If the gallery has no such class, or numbers in that column.
    """
    numbers = dict(values)
    for name, value in values.items():
        if isinstance(features[name], ClassLabel) and isinstance(value, str):
            if value not in features[name].names:
                raise ValueError(f"--columns: {name} {value!r} is none of {', '.join(features[name].names[:10])}, ...")
            numbers[name] = features[name].str2int(value)
        elif isinstance(value, str) and features[name] == Value("int64"):
            if re.fullmatch("-?[0-9]+", value) is None:
                raise ValueError(f"--columns: {name} is a number in this gallery, not {value!r}.")
            numbers[name] = int(value)
    return numbers


def describe(item: dict[str, Any], features: Features) -> list[Any]:
    """The path of the image, and the other columns, with the names of classes and identities."""
    others = (named(features, name, value) for name, value in item.items() if name != "image")
    return [path_of(item["image"]), *others]


def named(features: Features, name: str, value: Any) -> Any:
    return features[name].int2str(value) if isinstance(features[name], ClassLabel) else value


def paths(gallery: GalleryIndex) -> list[str]:
    return [path_of(image) for image in gallery.items["image"]]


def boxes(gallery: GalleryIndex) -> list[list[float] | None]:
    """The part of each image that was embedded; None for all of it."""
    return gallery.items["bbox"][:] if "bbox" in gallery.items.column_names else [None] * len(gallery)


def path_of(image: dict | str) -> str:
    return (image["path"] or "") if isinstance(image, dict) else image


def as_image(path: str, gallery: GalleryIndex) -> dict | str:
    """The path in the form of the image column of the gallery."""
    is_record = isinstance(gallery.items.features["image"], dict)
    return {"path": path, "bytes": None} if is_record else path
