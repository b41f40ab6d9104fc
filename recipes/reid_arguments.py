"""Options of run_reid.py that are not the trainer's: the model, the data set and its augmentation."""

from dataclasses import dataclass, field

from arguments import ModelArguments, require_at_least
from before import CheckArguments
from common import dataset_title

from dcal_hf.data import OFFICIAL_REID, PROTOCOLS


@dataclass
class ReIDModelArguments(ModelArguments):
    """Embedding."""

    neck_feature: str | None = field(
        default=None, metadata={"help": "Embedding: before (default) or after the BatchNorm neck."}
    )
    normalize_embeddings: bool | None = field(
        default=None, metadata={"help": "L2-normalise embeddings (default)."}
    )
    identity_loss: str | None = field(
        default=None, metadata={"help": "Identity loss: cross_entropy (default) or arcface."}
    )
    arcface_subcenters: int | None = field(default=None, metadata={"help": "Sub-centres per identity (3)."})
    arcface_margin: float | None = field(default=None, metadata={"help": "Margin of ArcFace in radians (0.5)."})
    arcface_scale: float | None = field(default=None, metadata={"help": "Scale of ArcFace (64)."})


@dataclass
class DataArguments(CheckArguments):
    """Data set and augmentation."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "`market1501`, `dukemtmc`, `msmt17` or `veri776` in --data_dir; `drawn` for the built-in "
            "synthetic data set; or your own table (.csv, .parquet). Defaults to a folder of identities in --data_dir."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder or archive of the images."})
    protocol: str = field(
        default="disjoint",
        metadata={
            "help": "Protocol for your own images: `disjoint` holds out individuals; `closed_set` searches train for "
            "other images of its individuals; `open_set` also for new ones; `time` searches it for later days.",
            "choices": list(PROTOCOLS),
        },
    )
    camera_column: str | None = field(
        default=None,
        metadata={"help": "Column of a table that stands for the camera, instead of camera; `date` for the day."},
    )
    include_val: bool = field(
        default=True, metadata={"help": "MSMT17: train on list_train and list_val, as in the papers."}
    )
    test_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Fraction of the identities to hold out if there is no query and gallery; by default 0.3 with "
            "--do_train, else 1, so that all are evaluated. With --protocol open_set, fraction of new ones, 0.3."
        },
    )
    query_fraction: float = field(
        default=0.2, metadata={"help": "Fraction of their images to use as queries if there are none."}
    )
    split_seed: int = field(default=42, metadata={"help": "Seed for both choices."})
    max_unpacked_bytes: int | None = field(
        default=None,
        metadata={"help": "Largest unpacked size of an archive; by default 100 times its size, or 100 MiB."},
    )
    padding: int = field(default=10, metadata={"help": "Pixels of padding before the random crop."})
    random_erasing: float = field(default=0.5, metadata={"help": "Probability of random erasing."})
    horizontal_flip: float = field(
        default=0.5,
        metadata={"help": "Probability of a horizontal flip; use 0 if the two sides of an individual differ."},
    )
    affine: float = field(
        default=0.0,
        metadata={"help": "Largest random rotation and shear in degrees, and shift and scaling in per cent."},
    )
    distractor_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of images of another data set to use as PWCA distractors, not training images."},
    )
    ranked_queries: int = field(
        default=8,
        metadata={"help": "Number of queries in ranked_lists.jpg; 0 writes no figure and needs no matplotlib."},
    )
    ranked_matches: int = field(default=5, metadata={"help": "Number of matches for each of these queries."})

    def __post_init__(self):
        super().__post_init__()
        if self.dataset_name is None and self.data_dir is None:
            raise ValueError("Give the images: --dataset_name, or --data_dir (a folder of identities).")
        require_at_least(0, self, "ranked_queries", "padding", "affine", "split_seed")
        fractions = ("random_erasing", "horizontal_flip", "test_fraction", "query_fraction")
        require_at_least(0, self, *fractions, at_most=1)
        require_at_least(1, self, "ranked_matches")

    @property
    def is_own(self) -> bool:
        """Whether the data set may need a split into query and gallery."""
        return self.dataset_name not in (*OFFICIAL_REID, "drawn")

    @property
    def layout(self) -> str | None:
        """The published data set whose layout `data_dir` has."""
        return self.dataset_name if self.dataset_name in OFFICIAL_REID else None

    @property
    def title(self) -> str:
        return dataset_title(self.dataset_name, self.data_dir, self.layout)

    @property
    def has_identity_folders(self) -> bool:
        """Whether the data set is a folder (or its archive) with a subfolder per identity."""
        return self.is_own and not (self.dataset_name or "").lower().endswith((".csv", ".parquet"))
