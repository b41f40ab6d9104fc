"""Arguments of [`DCALReIDTrainer`]."""

from dataclasses import dataclass, field

from .pairs import PAIR_SAMPLING
from .training_args import DCALTrainingArguments


# What each schedule takes where nothing is given; a learning rate of None follows `base_learning_rate`.
SCHEDULES = {
    "transreid": {"optim": "sgd", "learning_rate": 0.008, "weight_decay": 1e-4, "max_grad_norm": 0.0},
    "trainer": {"optim": "adamw_torch_fused", "learning_rate": None, "weight_decay": 0.05, "max_grad_norm": 1.0},
}


@dataclass
class DCALReIDTrainingArguments(DCALTrainingArguments):
    r"""
    [`DCALTrainingArguments`] with the defaults of the paper's re-identification recipe, which is that of TransReID
    (https://github.com/damo-cv/TransReID).

    > Parameters that control the batches

    Args:
        instances_per_identity (`int`, *optional*, defaults to 4):
            K: a batch holds `per_device_train_batch_size / K` identities with K images each.
        pair_sampling (`str`, *optional*, defaults to `"inter_class"`):
            As in [`DCALTrainingArguments`], but among the images of a batch. The paper draws partners from the whole
            training set, where they are hardly ever of the same identity; in a batch of P x K images any two are so
            with probability (K - 1) / (P K - 1), 1 in 21 for 16 x 4. Another identity's image comes closest to it.

    > Parameters that control the optimiser

    Args:
        schedule (`str`, *optional*, defaults to `"transreid"`):
            `"transreid"`: SGD with momentum 0.9, every bias at twice the learning rate, weight decay on everything but
            the losses' log-variances, no clipping, and one learning rate per epoch, see
            [`~dcal_hf.training.reid_trainer.transreid_factor`]; `warmup_steps` and `lr_scheduler_type` are not read.
            `"trainer"`, for training from scratch: the Trainer's own `optim`, `lr_scheduler_type` and `warmup_steps`,
            with the defaults of [`DCALTrainingArguments`].
        optim, learning_rate, weight_decay, max_grad_norm (*optional*):
            Of the schedule, if not given: `"sgd"`, 0.008, 1e-4 and 0 (no clipping), or `"adamw_torch_fused"`,
            `base_learning_rate / 512 x batch`, 0.05 and 1.

    > Parameters that control the evaluation

    Args:
        flip_tta (`bool`, *optional*, defaults to `False`):
            Embed each image and its mirror image, and take the mean.
        query_expansion (`int`, *optional*, defaults to 0):
            Search with the mean of a query and so many of its nearest gallery items; 0 for the query alone.
        query_expansion_alpha (`float`, *optional*, defaults to 0.0):
            The items of that mean weigh their cosine similarity to this power; 0 for a plain mean.
        rerank (`bool`, *optional*, defaults to `False`):
            Score the k-reciprocal re-ranking too, as `reranked_map`, ...

    > Changed defaults: 120 epochs of batch 64, evaluation in batches of 128, `metric_for_best_model` `"map"`.

    Raises:
        ValueError: For an unknown schedule, an optimiser that the schedule does not take, or label smoothing.
    """

    schedule: str = field(
        default="transreid",
        metadata={"help": "TransReID's optimiser and learning rates, or the Trainer's.", "choices": list(SCHEDULES)},
    )
    instances_per_identity: int = field(default=4, metadata={"help": "Images of each identity in a batch."})
    flip_tta: bool = field(default=False, metadata={"help": "Evaluate the mean of an image and its mirror image."})
    query_expansion: int = field(
        default=0, metadata={"help": "Search with the mean of a query and so many nearest gallery items."}
    )
    query_expansion_alpha: float = field(
        default=0.0, metadata={"help": "Items weigh their similarity to this power; 0 for a plain mean."}
    )
    rerank: bool = field(default=False, metadata={"help": "Score the k-reciprocal re-ranking too."})
    pair_sampling: str = field(
        default="inter_class",
        metadata={"help": "Which two images of a batch distract each other in PWCA.", "choices": PAIR_SAMPLING},
    )
    optim: str | None = field(default=None, metadata={"help": "The optimiser; the schedule's if not given."})
    learning_rate: float | None = field(default=None, metadata={"help": "The schedule's if not given."})
    weight_decay: float | None = field(default=None, metadata={"help": "The schedule's if not given."})
    max_grad_norm: float | None = field(default=None, metadata={"help": "The schedule's if not given."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images per device and step, P x K."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images per device at evaluation."})
    num_train_epochs: float = field(default=120.0, metadata={"help": "Passes over the training images."})
    metric_for_best_model: str | None = field(default="map", metadata={"help": "What tells the best checkpoint."})

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
        if self.label_smoothing_factor != 0:
            raise ValueError("Re-identification trains without label smoothing: its triplets need hard labels.")


__all__ = ["DCALReIDTrainingArguments"]
