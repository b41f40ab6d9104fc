"""Steps of the training recipes before they train: check the images, and print the sizes of the splits."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from arguments import require_at_least
from datasets import ClassLabel, Dataset, DatasetDict

from dcal_hf import DCALReIDTrainingArguments, DCALTrainingArguments
from dcal_hf.data import (
    MAX_PIXELS,
    Finding,
    column,
    inspect_images,
    leave_out,
    misplaced_images,
    unlabelled_images,
)
from dcal_hf.data.reid import known_identities
from dcal_hf.errors import counted
from dcal_hf.files import save_table
from dcal_hf.models import DCALPreTrainedModel
from dcal_hf.training import IdentityBalancedSampler, check_distractors
from dcal_hf.training.processes import on_main_process


CHECK_FILE = "data_check.csv"
# Printed per problem; the table contains all.
EXAMPLES = 3


@dataclass
class CheckArguments:
    """Check of the images before training."""

    check_files: Literal["full", "header", "off"] = field(
        default="full",
        metadata={
            "help": "Check for unreadable, tiny, duplicate and misplaced images before training: `full` reads whole "
            "files, which finds truncated ones and takes less time than an epoch; `header` reads only headers."
        },
    )
    skip_broken: bool = field(
        default=False,
        metadata={"help": "Leave out images with problems (listed in data_check.csv) instead of failing."},
    )
    max_pixels: int = field(
        default=MAX_PIXELS, metadata={"help": "Largest number of pixels (width times height) of an image."}
    )

    def __post_init__(self):
        if self.skip_broken and self.check_files == "off":
            raise ValueError("--skip_broken needs a check of the images: give --check_files full or header.")
        require_at_least(1, self, "max_pixels")


def check_data(
    dataset: DatasetDict,
    splits: Sequence[str],
    class_column: str,
    check_args: CheckArguments,
    training_args: DCALTrainingArguments,
    has_class_folders: bool,
    distractors: Dataset | None,
) -> tuple[DatasetDict, Dataset | None]:
    """Checks the images of the splits that are used. Prints a summary of all problems, and lists them in a table.

    Args:
        has_class_folders (`bool`): Whether to report images next to the class folders or in subfolders of them.
        distractors (`datasets.Dataset`, *optional*): Images of another data set, see [`load_distractors`].

    Returns:
        The data set and the distractors; with `--skip_broken`, without the images found.

    Raises:
        ValueError: If images cannot be read and `--skip_broken` is not given.
    """
    if check_args.check_files == "off":
        return dataset, distractors
    used = DatasetDict({split: dataset[split] for split in splits})
    if distractors is not None:
        used["distractors"] = distractors
    start = time.monotonic()
    inspect = partial(
        inspect_images,
        used,
        class_column,
        decode=check_args.check_files == "full",
        max_pixels=check_args.max_pixels,
        progress=not training_args.disable_tqdm,
    )
    # Only the main process reads the images; all processes must leave out the same ones.
    findings = on_main_process(inspect)
    seconds = time.monotonic() - start
    if training_args.process_index == 0:
        misplaced = misplaced_images(image_paths(dataset)) if has_class_folders else []
        print(f"Checked {counted(sum(map(len, used.values())), 'image')} in {seconds:.1f} s.")
        report(findings, misplaced, check_args.skip_broken, common_folder(dataset), training_args.output_dir)
    unreadable = [finding for finding in findings if finding.problem == "unreadable"]
    if unreadable and not check_args.skip_broken:
        raise ValueError(
            f"{len(unreadable)} of {sum(map(len, used.values())):,} images cannot be read, the first is "
            f"{unreadable[0].image}: replace them, or leave them out with --skip_broken. All are listed in "
            f"{Path(training_args.output_dir, CHECK_FILE)}."
        )
    if check_args.skip_broken:
        used = leave_out(used, findings)
    distractors = used.pop("distractors", None)
    return DatasetDict({**dataset, **used}), distractors


def load_distractors(
    folder: str | None, model: DCALPreTrainedModel, training_args: DCALTrainingArguments
) -> Dataset | None:
    """Loads the images of `--distractor_dir`; None without the option, or if the model is not trained.

    Raises:
        ValueError: If the model or `--pair_sampling` does not go with them.
    """
    if folder is None or not training_args.do_train:
        return None
    check_distractors(model, training_args.pair_sampling)
    return unlabelled_images(Path(folder))


def image_paths(dataset: DatasetDict) -> list[str]:
    """The paths of the images that are files."""
    return [record["path"] for part in dataset.values() for record in part["image"] if record["bytes"] is None]


def common_folder(dataset: DatasetDict) -> str:
    """The deepest folder that contains all images; an empty string if there is none, or they are not files."""
    folders = set(map(os.path.dirname, image_paths(dataset)))
    # Paths of a table, or of the folders of splits, may be absolute or relative.
    return os.path.commonpath(folders) if len(set(map(os.path.isabs, folders))) == 1 else ""


def report(
    findings: Sequence[Finding], misplaced: Sequence[Path], skips: bool, folder: str, output_dir: str
) -> None:
    """Prints the number and some examples of each problem, and writes a table of all, with paths in `folder`."""
    path = Path(output_dir, CHECK_FILE)
    left_out = "yes" if skips else "no"
    rows = [[finding.split, finding.image, finding.problem, finding.detail, left_out] for finding in findings]
    rows += [["", str(image), "misplaced", "next to or below the class folders", "not read"] for image in misplaced]
    if not rows:
        # Problems of an earlier run have been fixed.
        path.unlink(missing_ok=True)
        return
    if folder:
        rows = [[cell.replace(f"{folder}{os.sep}", "") for cell in row] for row in rows]
    others = " and of the distractors" if any(finding.split == "distractors" for finding in findings) else ""
    print(f"Of the images{f' in {folder}' if folder else ''}{others},")
    for problem, count in Counter(problem for _, _, problem, _, _ in rows).items():
        examples = [f"{image} ({detail})" for _, image, other, detail, _ in rows if other == problem][:EXAMPLES]
        print(f"  {count:,} {problem}:")
        print(*(f"    {example}" for example in examples), *["    ..."] * (count > EXAMPLES), sep="\n")
    print(
        f"{f'Left out: {len(findings):,}. ' if skips and findings else ''}All are listed in "
        f"{save_table(['split', 'image', 'problem', 'detail', 'left out'], rows, path)}."
    )


def check_reid_sizes(dataset: DatasetDict, training_args: DCALReIDTrainingArguments) -> None:
    """Finds out before training what would only fail in its first batch, or in an evaluation hours later.

    Raises:
        ValueError: If no batch can be made, or the gallery is too small for `--query_expansion`.
    """
    if training_args.do_train:
        labels = column(dataset["train"], "label")
        IdentityBalancedSampler(labels, training_args.train_batch_size, training_args.instances_per_identity)
    if "gallery" in dataset and training_args.query_expansion > len(dataset["gallery"]):
        raise ValueError(
            f"--query_expansion {training_args.query_expansion}: the gallery has "
            f"{counted(len(dataset['gallery']), 'image')}."
        )


def print_splits(title: str, dataset: DatasetDict, splits: Sequence[str], class_column: str, noun: str) -> None:
    """Prints the number of images and classes of each split that is used, and its smallest class."""
    rows = [(title, "images", noun, "smallest")]
    for split in splits:
        counts = class_counts(dataset[split], class_column)
        name, count = min(counts.items(), key=lambda item: item[1])
        present = sum(count > 0 for count in counts.values())
        unknown = len(dataset[split]) - sum(counts.values())
        smallest = f"{name} ({count:,})" + (f"; {counted(unknown, 'unknown individual')}" if unknown else "")
        rows.append((split, f"{len(dataset[split]):,}", f"{present:,}", smallest))
    width = max(len(row[0]) for row in rows)
    for name, images, classes, smallest in rows:
        print(f"{name:<{width}}  {images:>9}  {classes:>10}  {smallest}")


def class_counts(part: Dataset, class_column: str) -> dict[str, int]:
    """The number of images per class name. For identities, only those of the split are included, without unknown
    individuals, of which each image has its own."""
    feature, counts = part.features[class_column], Counter(column(part, class_column))
    numbers = range(feature.num_classes) if class_column == "label" else known_identities(part)
    has_names = isinstance(feature, ClassLabel)
    return {feature.int2str(number) if has_names else str(number): counts[number] for number in numbers}
