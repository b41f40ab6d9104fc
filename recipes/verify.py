# /// script
# dependencies = ["dcal_hf"]
# ///
"""Decides whether two images show the same individual. First, calibrate the threshold once, on labelled images:

    python recipes/verify.py --model_name_or_path out --calibrate --data_dir turtles --false_accept_rate 0.01

It is saved in the checkpoint folder, as verification.json. Then verify any number of pairs (1st and 2nd image, 3rd and
4th, ...):

    python recipes/verify.py --model_name_or_path out a.jpg b.jpg

Calibrate on individuals that the model was not trained on. Folders without query, gallery and test are split as by
recipes/run_reid.py; put individuals into a folder `test` to use them all. Images of the identity `unknown` are left
out.
"""

if __name__ == "__main__":
    from cli import run_script

    # Imports this file as a module, unless only its help is asked for, because the imports below take seconds.
    raise SystemExit(run_script(__file__))

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from arguments import parse_arguments, require_at_least
from common import dataset_title, set_up_logging
from datasets import Dataset, concatenate_datasets
from embed import BBOX_HELP, CheckpointArguments, image_parts
from loading import find_calibration, load_checkpoint
from transformers import BaseImageProcessor, PreTrainedModel

from dcal_hf.data import OFFICIAL_REID, load_reid, protocol_columns
from dcal_hf.errors import counted
from dcal_hf.files import save_table
from dcal_hf.retrieval import (
    VERIFICATION_FILE,
    VerificationThreshold,
    calibrate,
    embed_images,
    model_fingerprint,
    pair_distances,
)


logger = logging.getLogger(__name__)

COLUMNS = ("first", "second", "same", "distance", "threshold", "false_accept_rate")


@dataclass
class VerifyArguments:
    """Where to write the results, or what to calibrate on."""

    output: str | None = field(default=None, metadata={"help": "CSV file for the results."})
    bbox: list[float] | None = field(default=None, metadata={"help": BBOX_HELP})
    calibrate: bool = field(default=False, metadata={"help": "Calibrate the threshold on labelled images."})
    false_accept_rate: float = field(
        default=0.01, metadata={"help": "Largest share of pairs of different individuals accepted as the same."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "market1501, dukemtmc, msmt17 or veri776 in data_dir, drawn for the built-in data set, or your "
            "own table (.csv, .parquet); defaults to a folder of identities in data_dir."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder or archive of the images."})
    camera_column: str | None = field(
        default=None,
        metadata={"help": "Column of a table that stands for the camera, as in training; `date` for the day."},
    )
    test_fraction: float = field(
        default=0.3,
        metadata={
            "help": "Fraction of the identities to use if there is no query, gallery and test: 0.3 are those that "
            "recipes/run_reid.py holds out, 1 is for a model that was trained on none of them."
        },
    )
    split_seed: int = field(default=42, metadata={"help": "Seed for choosing these identities."})

    def __post_init__(self):
        require_at_least(0, self, "false_accept_rate", "test_fraction", at_most=1)
        if self.calibrate == (self.dataset_name is None and self.data_dir is None):
            raise ValueError(
                "To calibrate the threshold, give --calibrate and labelled images: --data_dir (a folder of "
                "identities), or --dataset_name."
            )

    @property
    def title(self) -> str:
        layout = self.dataset_name if self.dataset_name in OFFICIAL_REID else None
        return dataset_title(self.dataset_name, self.data_dir, layout)


ARGUMENTS = (VerifyArguments, CheckpointArguments)
POSITIONAL = ("[IMAGES ...]", "Images; every two are a pair.")


def main() -> None:
    verify_args, checkpoint_args, images = parse_arguments(ARGUMENTS, files=POSITIONAL[1])
    check_images(images, verify_args)
    set_up_logging(logging.WARNING)
    logger.setLevel(logging.INFO)
    if verify_args.calibrate:
        calibrate_checkpoint(checkpoint_args, verify_args)
    else:
        verify(checkpoint_args, image_parts(images, verify_args.bbox), images, verify_args.output)


def check_images(images: list[str], args: VerifyArguments) -> None:
    if args.calibrate and (images or args.bbox is not None):
        asked = images[0] if images else "--bbox"
        raise ValueError(f"--calibrate takes labelled images alone; ask about {asked} in a call without it.")
    if not args.calibrate and (not images or len(images) % 2):
        raise ValueError(f"Give two images, or several pairs of them: a.jpg b.jpg; got {len(images)}.")


def calibrate_checkpoint(checkpoint_args: CheckpointArguments, verify_args: VerifyArguments) -> None:
    """Writes `verification.json` into the checkpoint folder."""
    folder = Path(checkpoint_args.model_name_or_path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder to keep the threshold in: download the checkpoint, `hf download`.")
    images, distractor_ids = labelled_images(verify_args)
    model, processor = load_checkpoint(checkpoint_args)
    columns = protocol_columns(images, images)
    kept = calibrate(
        embed_images(model, processor, images, **checkpoint_args.reader_kwargs),
        columns["gallery_ids"],
        columns.get("gallery_cameras"),
        columns.get("gallery_images"),
        distractor_ids=distractor_ids,
        false_accept_rate=verify_args.false_accept_rate,
        dataset=verify_args.title,
        model_id=model_fingerprint(model),
    )
    print(
        f"Nearer than {kept.threshold:.4f} is the same individual: at most {100 * kept.false_accept_rate:.3g} % of "
        f"{counted(kept.num_different_pairs, 'pair')} of different individuals are, and "
        f"{100 * kept.true_accept_rate:.3g} % of {counted(kept.num_same_pairs, 'pair')} of the same one.\n"
        f"{kept.save(folder)}"
    )


def labelled_images(args: VerifyArguments) -> tuple[Dataset, list[int]]:
    """The images of query and gallery, and the distractor identities, which have several images but no query.

    Images of unknown individuals are left out: they may show the same individual as any other image.
    """
    splits = load_reid(
        args.dataset_name or "imagefolder",
        args.data_dir,
        splits=("query", "gallery"),
        camera_column=args.camera_column,
        test_fraction=args.test_fraction,
        seed=args.split_seed,
        keep_unknown=False,
    )
    asked, images = set(splits["query"]["identity"]), concatenate_datasets(list(splits.values()))
    counts = Counter(images["identity"])
    distractor_ids = [identity for identity, count in counts.items() if count > 1 and identity not in asked]
    logger.info(
        "Calibrating on %s of %s of %s, those of query and gallery",
        counted(len(images), "image"), counted(len(counts) - len(distractor_ids), "individual"), args.title,
    )
    return images, distractor_ids


def verify(checkpoint_args: CheckpointArguments, parts: Dataset, images: list[str], output: str | None) -> None:
    """Prints the result for each pair, and writes all results as a table; `parts` says what to read of the images."""
    model, processor = load_checkpoint(checkpoint_args)
    kept = load_threshold(checkpoint_args, model)
    rows = []
    for first, second, distance in zip(images[::2], images[1::2], measure(model, processor, parts, checkpoint_args)):
        same = bool(distance < kept.threshold)
        print(f"{first} and {second}: {verdict(distance, kept)}")
        rows.append([first, second, same, f"{distance:.4f}", f"{kept.threshold:.4f}", kept.false_accept_rate])
    if output is not None:
        print(save_table(COLUMNS, rows, output))


def verdict(distance: float, kept: VerificationThreshold) -> str:
    """The answer for a pair, with the distance, the threshold and its false-accept rate."""
    answer = "the same individual" if distance < kept.threshold else "different individuals"
    return (
        f"{answer}, distance {distance:.4f} (threshold {kept.threshold:.4f}, false-accept rate "
        f"{kept.false_accept_rate:g} on {kept.dataset})"
    )


def measure(
    model: PreTrainedModel, processor: BaseImageProcessor, images: Dataset, checkpoint_args: CheckpointArguments
) -> np.ndarray:
    """The distances (N,) of the N pairs of 2 N images."""
    embeddings = embed_images(model, processor, images, **checkpoint_args.reader_kwargs)
    return pair_distances(embeddings[::2], embeddings[1::2])


def load_threshold(checkpoint_args: CheckpointArguments, model: PreTrainedModel) -> VerificationThreshold:
    """Loads the threshold that [`calibrate_checkpoint`] saved, from a checkpoint folder or the Hub."""
    advice = (
        f"calibrate its threshold first, dcal verify {checkpoint_args.loading_options()} --calibrate --data_dir "
        "a_folder_of_identities"
    )
    path = find_calibration(checkpoint_args, VERIFICATION_FILE, advice)
    return VerificationThreshold.load(path.parent, model_fingerprint(model))
