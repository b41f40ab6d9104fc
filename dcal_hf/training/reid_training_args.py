"""Arguments of [`DCALReIDTrainer`]."""

from dataclasses import dataclass, field

from .pairs import PAIR_SAMPLING
from .training_args import DCALTrainingArguments


# Defaults of each schedule. A learning rate of None is derived from `base_learning_rate`.
SCHEDULES = {
    "transreid": {"optim": "sgd", "learning_rate": 0.008, "weight_decay": 1e-4, "max_grad_norm": 0.0},
    "trainer": {"optim": "adamw_torch_fused", "learning_rate": None, "weight_decay": 0.05, "max_grad_norm": 1.0},
}


@dataclass
class DCALReIDTrainingArguments(DCALTrainingArguments):
    r"""
    [`DCALTrainingArguments`] with the defaults of the paper's re-identification recipe, which follows TransReID
    (https://github.com/damo-cv/TransReID).

    > Parameters that control the batches

    Args:
        instances_per_identity (`int`, *optional*, defaults to 4):
            K: a batch holds `per_device_train_batch_size / K` identities with K images each.
        pair_sampling (`str`, *optional*, defaults to `"inter_class"`):
            As in [`DCALTrainingArguments`], but among the images of a batch. The paper samples partners from the whole
            training set, where two images rarely have the same identity. In a batch of P x K images they do with
            probability (K - 1) / (P K - 1), 1 in 21 for 16 x 4, so the default of different identities is closest to
            the paper.

    > Parameters that control the optimiser

    Args:
        schedule (`str`, *optional*, defaults to `"transreid"`):
            `"transreid"`: SGD with momentum 0.9, twice the learning rate for biases, weight decay for all parameters
            except the log-variances of the losses, no clipping, and one learning rate per epoch, see
            [`~dcal_hf.training.reid_trainer.transreid_factor`]. `warmup_steps` and `lr_scheduler_type` are ignored.
            `"trainer"`, for training from scratch: the Trainer's own `optim`, `lr_scheduler_type` and `warmup_steps`,
            with the defaults of [`DCALTrainingArguments`].
        optim, learning_rate, weight_decay, max_grad_norm (*optional*):
            Default to those of the schedule: `"sgd"`, 0.008, 1e-4 and 0 (no clipping) for `"transreid"`;
            `"adamw_torch_fused"`, `base_learning_rate / 512 x batch`, 0.05 and 1 for `"trainer"`.

    > Parameters that control the evaluation

    Args:
        flip_tta (`bool`, *optional*, defaults to `False`):
            Average the embeddings of each image and its mirror image.
        query_expansion (`int`, *optional*, defaults to 0):
            Search with the mean of a query and this many of its nearest gallery items; 0 disables it.
        query_expansion_alpha (`float`, *optional*, defaults to 0.0):
            Exponent of the weights in that mean, which are cosine similarities; 0 gives a plain mean.
        rerank (`bool`, *optional*, defaults to `False`):
            Also score the k-reciprocal re-ranking, as `reranked_map`, ...
        open_set (`bool`, *optional*, defaults to `False`):
            Also score whether queries of individuals that the gallery lacks are told to be new, by
            [`~dcal_hf.metrics.open_set_metrics`]: `baks`, `baus`, `baks_baus`, `auroc_new`, ...
        open_set_threshold (`float`, *optional*):
            The Euclidean distance from which on a query is new; [`~dcal_hf.metrics.gallery_threshold`] by default.

    > Changed defaults: 120 epochs with a batch size of 64, evaluation batch size 128, `metric_for_best_model="map"`.

    Raises:
        ValueError: For an unknown schedule, an optimiser that the schedule does not support, label smoothing, class
            weights or logit adjustment, or a negative query expansion.
    """

    schedule: str = field(
        default="transreid",
        metadata={"help": "TransReID's optimiser and learning rates, or the Trainer's.", "choices": list(SCHEDULES)},
    )
    instances_per_identity: int = field(default=4, metadata={"help": "Images of each identity in a batch."})
    flip_tta: bool = field(default=False, metadata={"help": "Average embeddings of an image and its mirror image."})
    query_expansion: int = field(
        default=0, metadata={"help": "Search with the mean of a query and this many nearest gallery items."}
    )
    query_expansion_alpha: float = field(
        default=0.0, metadata={"help": "Exponent of the similarities that weight this mean; 0 for a plain mean."}
    )
    rerank: bool = field(default=False, metadata={"help": "Also score the k-reciprocal re-ranking."})
    open_set: bool = field(
        default=False,
        metadata={"help": "Also score whether queries of individuals that the gallery lacks are told to be new."},
    )
    open_set_threshold: float | None = field(
        default=None,
        metadata={"help": "Distance from which on a query is new; chosen on the gallery alone if not given."},
    )
    pair_sampling: str = field(
        default="inter_class",
        metadata={"help": "Which two images of a batch distract each other in PWCA.", "choices": PAIR_SAMPLING},
    )
    optim: str | None = field(default=None, metadata={"help": "The optimiser; the schedule's if not given."})
    learning_rate: float | None = field(default=None, metadata={"help": "The schedule's if not given."})
    weight_decay: float | None = field(default=None, metadata={"help": "The schedule's if not given."})
    max_grad_norm: float | None = field(default=None, metadata={"help": "The schedule's if not given."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images per device and step, P x K."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images per device in evaluation."})
    num_train_epochs: float = field(default=120.0, metadata={"help": "Passes over the training images."})
    metric_for_best_model: str | None = field(default="map", metadata={"help": "Metric that selects the best model."})

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule='{self.schedule}' is unknown; choose one of {', '.join(SCHEDULES)}.")
        for name, value in SCHEDULES[self.schedule].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__()
        if self.schedule == "transreid" and self.optim != "sgd":
            raise ValueError(
                f"TransReID's schedule is for SGD: give --schedule trainer to train with {self.optim.value}."
            )
        if self.query_expansion < 0 or self.query_expansion_alpha < 0:
            raise ValueError(
                f"query_expansion={self.query_expansion} and query_expansion_alpha={self.query_expansion_alpha} must "
                "be at least 0."
            )
        if self.label_smoothing_factor != 0:
            raise ValueError(
                "Re-identification trains without label smoothing: its triplets need hard labels. Set "
                "label_smoothing_factor to 0."
            )
        if self.class_weights is not None or self.logit_adjustment != 0:
            raise ValueError(
                "Re-identification trains on identity-balanced batches: leave out class_weights and logit_adjustment."
            )


__all__ = ["DCALReIDTrainingArguments"]
