"""Options of run_fgvc.py for the data set and its augmentation."""

from dataclasses import dataclass, field
from pathlib import Path

from arguments import require_at_least
from before import CheckArguments
from common import dataset_title

from dcal_hf.data import OFFICIAL_FGVC


@dataclass
class DataArguments(CheckArguments):
    """Data set and augmentation."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "`cub200`, `stanford_cars` or `fgvc_aircraft`, from --data_dir or, without it, from the Hub; the "
            "Hub ID of another data set; or `drawn` for the built-in synthetic one."
        },
    )
    dataset_config_name: str | None = field(
        default=None,
        metadata={
            "help": "Configuration of the Hub data set; for `fgvc_aircraft` the level of its classes: `variant` (the "
            "default), `family` or `manufacturer`."
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with train/<class>/*, validation/<class>/* and test/<class>/*, or the official folder of "
            "--dataset_name; or an archive of either (.tar, .tar.gz, .tgz, .zip)."
        },
    )
    train_dir: str | None = field(default=None, metadata={"help": "Training images, in a subfolder per class."})
    validation_dir: str | None = field(default=None, metadata={"help": "Validation images, in a subfolder per class."})
    image_column_name: str = field(default="image", metadata={"help": "Name of the image column."})
    label_column_name: str = field(default="label", metadata={"help": "Name of the class column."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Fraction of train to use for validation if there is no validation split."}
    )
    eval_split: str = field(
        default="validation",
        metadata={"help": "Split to evaluate on; with `test`, training uses all of train, as in the papers."},
    )
    split_seed: int = field(default=42, metadata={"help": "Seed for splitting train."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Maximum number of training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Maximum number of evaluation images."})
    max_unpacked_bytes: int | None = field(
        default=None,
        metadata={"help": "Largest unpacked size of an archive; by default 100 times its size, or 100 MiB."},
    )
    resize_ratio: float = field(
        default=550 / 448, metadata={"help": "Resize images to this multiple of the input size before the crop."}
    )
    auto_augment: str | None = field(
        default=None, metadata={"help": "RandAugment policy of timm, e.g. rand-m9-mstd0.5-inc1."}
    )
    color_jitter: float = field(default=0.0, metadata={"help": "Strength of the colour jitter."})
    random_erasing: float = field(default=0.0, metadata={"help": "Probability of random erasing."})
    distractor_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of images of another data set to use as PWCA distractors, not training images."},
    )
    attention_images: int = field(
        default=6, metadata={"help": "Number of images in attention.jpg; 0 writes no figure and needs no matplotlib."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.dataset_name is None and self.data_dir is None and self.train_dir is None:
            raise ValueError("Give the images: --dataset_name, --data_dir (a folder of splits) or --train_dir.")
        # With the ratio below 1, there would be fewer pixels than the crop takes.
        require_at_least(1, self, "max_train_samples", "max_eval_samples", "resize_ratio")
        require_at_least(0, self, "attention_images", "color_jitter", "split_seed")
        require_at_least(0, self, "train_val_split", "random_erasing", at_most=1)

    @property
    def folders(self) -> str | dict[str, str] | None:
        if self.train_dir is None:
            return self.data_dir
        folders = {"train": self.train_dir, "validation": self.validation_dir}
        return {split: folder for split, folder in folders.items() if folder is not None}

    @property
    def layout(self) -> str | None:
        """The published data set whose layout `data_dir` has."""
        return self.dataset_name if self.dataset_name in OFFICIAL_FGVC and self.data_dir is not None else None

    @property
    def title(self) -> str:
        return dataset_title(self.dataset_name, self.data_dir or self.train_dir, self.layout)

    @property
    def has_class_folders(self) -> bool:
        """Whether the data set is a folder (or its archive) with a subfolder per class."""
        return self.dataset_name in (None, "imagefolder") or Path(self.dataset_name).exists()

    def split_title(self, split: str | None = None) -> str:
        return f"{self.title}, {split or self.eval_split}"
