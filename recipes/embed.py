# /// script
# dependencies = ["dcal_hf"]
# ///
"""Embeds images with a DCAL checkpoint and saves them as a gallery for recipes/search.py.

All images in a folder and its subfolders:

    python recipes/embed.py --model_name_or_path out --image_dir photographs --output_dir gallery

A split of a data set, on several GPUs, into a compressed index ("np" skips a training step that takes minutes and is
only useful for searches with `ht`):

    accelerate launch recipes/embed.py --model_name_or_path out --dataset_name market1501 \
        --data_dir Market-1501-v15.09.15 --split gallery --output_dir gallery \
        --factory IVF256,PQ64np --search_parameters '{"nprobe": 32}'
"""

if __name__ == "__main__":
    from cli import run_script

    # Imports this file as a module, unless only its help is asked for, because the imports below take seconds.
    raise SystemExit(run_script(__file__))

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from arguments import HubArguments, json_option, parse_arguments, require_at_least
from common import set_up_logging
from datasets import Dataset
from loading import load_checkpoint
from transformers import PreTrainedModel

from dcal_hf.data import MAX_PIXELS, OFFICIAL_REID, PROTOCOLS, load_fgvc, load_reid, unlabelled_images
from dcal_hf.data.reid_tables import TABLE_SUFFIXES
from dcal_hf.errors import counted
from dcal_hf.retrieval import GalleryIndex, embed_images, model_fingerprint


logger = logging.getLogger(__name__)

BBOX_HELP = "The part of each image to read, x y width height in pixels: once for all images, or for each in order."


@dataclass
class CheckpointArguments(HubArguments):
    """How images are read."""

    batch_size: int = field(default=32, metadata={"help": "Images per batch and process."})
    num_workers: int = field(default=0, metadata={"help": "Data-loading processes per embedding process."})
    max_pixels: int = field(
        default=MAX_PIXELS, metadata={"help": "Images of more pixels, width times height, are refused."}
    )

    def __post_init__(self):
        require_at_least(1, self, "batch_size", "max_pixels")
        require_at_least(0, self, "num_workers")

    @property
    def reader_kwargs(self) -> dict[str, int]:
        return {"batch_size": self.batch_size, "num_workers": self.num_workers, "max_pixels": self.max_pixels}


@dataclass
class GalleryArguments:
    """Images and gallery."""

    output_dir: str = field(metadata={"help": "Folder of the gallery; an existing gallery is replaced."})
    image_dir: str | None = field(
        default=None, metadata={"help": "Folder of images, including its subfolders except hidden ones."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set instead of a folder, by its name in the training recipes."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder or archive of the data set."})
    max_unpacked_bytes: int | None = field(
        default=None,
        metadata={"help": "Largest unpacked size of an archive; by default 100 times its size, or 100 MiB."},
    )
    task: Literal["fgvc", "reid"] | None = field(
        default=None,
        metadata={
            "help": "Training recipe of the data set; by default reid for a table (.csv, .parquet), market1501, "
            "dukemtmc, msmt17 and veri776, else fgvc."
        },
    )
    split: str = field(default="train", metadata={"help": "Split of the data set."})
    protocol: str = field(
        default="disjoint",
        metadata={"help": "For re-identification, how recipes/run_reid.py splits it.", "choices": list(PROTOCOLS)},
    )
    camera_column: str | None = field(
        default=None, metadata={"help": "Column of a table that stands for the camera."}
    )
    test_fraction: float | None = field(
        default=None,
        metadata={
            "help": "For re-identification, share of the identities to hold out if there is no query and gallery; by "
            "default 0 with --split train, else 1, so that all are embedded; 0.3 with another protocol."
        },
    )
    split_seed: int = field(default=42, metadata={"help": "Seed of that split."})
    skip_broken: bool = field(
        default=False, metadata={"help": "Skip unreadable images with a warning instead of failing."}
    )
    factory: str = field(default="Flat", metadata={"help": "faiss factory string; Flat is exact."})
    metric: Literal["cosine", "euclidean"] = field(default="cosine", metadata={"help": "Distance of the gallery."})
    search_parameters: str = field(
        default="{}", metadata={"help": "Search parameters of the index as JSON, e.g. '{\"nprobe\": 16}'."}
    )

    def __post_init__(self):
        if (self.image_dir is None) == (self.dataset_name is None):
            raise ValueError("Give the images: either --image_dir or --dataset_name.")
        require_at_least(0, self, "test_fraction", at_most=1)
        if self.task is None:
            name = self.dataset_name or ""
            self.task = "reid" if name in OFFICIAL_REID or Path(name).suffix.lower() in TABLE_SUFFIXES else "fgvc"
        self.index_parameters = json_option("search_parameters", self.search_parameters, '{"nprobe": 16}')


ARGUMENTS = (CheckpointArguments, GalleryArguments)


def main() -> None:
    checkpoint_args, gallery_args = parse_arguments(ARGUMENTS)
    # Without GPUs, accelerate sees a single process under torchrun unless cpu is set.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    set_up_logging(logging.WARNING)
    logger.setLevel(logging.INFO)
    with accelerator.main_process_first():
        dataset = load_images(gallery_args)
    model, processor = load_checkpoint(checkpoint_args)
    embeddings = embed_images(
        model, processor, dataset, skip_broken=gallery_args.skip_broken, **checkpoint_args.reader_kwargs
    )
    if accelerator.is_main_process:
        build_gallery(embeddings, dataset, model, checkpoint_args, gallery_args).save(gallery_args.output_dir)
        logger.info("The gallery is in %s", gallery_args.output_dir)
    accelerator.end_training()


def load_images(args: GalleryArguments) -> Dataset:
    """The table to index, with the column image.

    Raises:
        ValueError: If the data set lacks the split.
    """
    if args.image_dir is not None:
        return unlabelled_images(Path(args.image_dir))
    if args.task == "reid":
        fraction = args.test_fraction
        if fraction is None:
            fraction = 0.3 if args.protocol != "disjoint" else 0.0 if args.split == "train" else 1.0
        options = {"splits": (args.split,), "protocol": args.protocol, "camera_column": args.camera_column}
        options |= {"test_fraction": fraction, "seed": args.split_seed}
        splits = load_reid(args.dataset_name, args.data_dir, **options, max_unpacked_bytes=args.max_unpacked_bytes)
        dataset = splits[args.split]
        # The label repeats the identity as a number, for the loss.
        return dataset.remove_columns("label") if args.split == "train" else dataset
    dataset = load_fgvc(
        args.dataset_name, args.data_dir, validation_fraction=0.0, max_unpacked_bytes=args.max_unpacked_bytes
    )
    if args.split not in dataset:
        raise ValueError(f"--split {args.split}: {args.dataset_name} has only {', '.join(dataset)}.")
    return dataset[args.split]


def image_parts(paths: Sequence[str], numbers: Sequence[float] | None = None) -> Dataset:
    """The table of images to embed, with the column bbox if `--bbox` is given.

    Raises:
        ValueError: If these are not four numbers, or four for each image.
    """
    images = {"image": [str(Path(path).resolve()) for path in paths]}
    if numbers is None:
        return Dataset.from_dict(images)
    boxes = [numbers[start:start + 4] for start in range(0, len(numbers), 4)]
    if len(numbers) % 4 or len(boxes) not in (1, len(paths)) or any(min(box[2:]) <= 0 for box in boxes):
        raise ValueError(
            f"--bbox takes x, y, width and height in pixels, the same for all images or for each of the {len(paths)}; "
            f"got {' '.join(f'{number:g}' for number in numbers)}."
        )
    return Dataset.from_dict({**images, "bbox": boxes if len(boxes) > 1 else boxes * len(paths)})


def readable_rows(embeddings: np.ndarray) -> np.ndarray:
    """The rows of images that could be read; with `skip_broken`, the others are rows of NaN."""
    return np.flatnonzero(~np.isnan(embeddings).any(axis=1))


def build_gallery(
    embeddings: np.ndarray,
    dataset: Dataset,
    model: PreTrainedModel,
    checkpoint_args: CheckpointArguments,
    gallery_args: GalleryArguments,
) -> GalleryIndex:
    """Builds a gallery of the images. With `--skip_broken`, rows of NaN are left out."""
    if gallery_args.skip_broken:
        kept = readable_rows(embeddings)
        logger.info("%d of %s could be read", len(kept), counted(len(dataset), "image"))
        embeddings, dataset = embeddings[kept], dataset.select(kept)
    return GalleryIndex.from_embeddings(
        embeddings,
        dataset,
        model_id=model_fingerprint(model),
        model_name=checkpoint_args.model_name_or_path,
        factory=gallery_args.factory,
        metric=gallery_args.metric,
        search_parameters=gallery_args.index_parameters,
    )
