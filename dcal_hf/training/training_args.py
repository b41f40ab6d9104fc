"""Arguments of [`DCALTrainer`]."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .lora import check_peft
from .pairs import PAIR_SAMPLING


@dataclass
class DCALTrainingArguments(TrainingArguments):
    r"""
    `TrainingArguments` with the defaults of the paper's fine-grained recipe (section 4.1, DeiT's at a small batch),
    with AdamW where the paper says Adam. Its stochastic depth is the model's: `drop_path_rate`, off by default.

    > Parameters that control the pairs of PWCA

    Args:
        pair_sampling (`str`, *optional*, defaults to `"any"`):
            Which two images of the training set distract each other: any two (`"any"`), two of different classes
            (`"inter_class"`), of the same class (`"intra_class"`), half of the pairs of either kind (`"half"`); or
            Gaussian noise in the place of the other's keys and values (`"noise"`). Table 4 of the paper compares them.
            The order of the epoch is arranged so that images 2k and 2k + 1 of a batch are a pair; how many images
            have no partner is logged once an epoch, as `unpaired_images`.
        pwca_fraction (`float`, *optional*, defaults to 1.0):
            Share of a batch's pairs that take part in PWCA: a dial of its cost, as `num_pwca_blocks` is.

    > Parameters that control the learning rate

    Args:
        base_learning_rate (`float`, *optional*, defaults to 5e-4):
            The learning rate at a batch of 512 images.
        learning_rate (`float`, *optional*):
            `base_learning_rate / 512 x batch` over all processes and accumulation steps, if not given.

    > Parameters that control what is trained; GLCA, the necks, the heads and the log-variances always are, in full

    Args:
        freeze_backbone (`bool`, *optional*, defaults to `False`):
            Leave the backbone as it is, its final norm included, and run it without stochastic depth and dropout.
        layer_decay (`float`, *optional*, defaults to 1.0):
            Layer-wise learning-rate decay: each block of the backbone learns at this share of the next one's rate, see
            [`~dcal_hf.training.parameter_groups.parameter_groups`]. 0.65 to 0.75 is usual, 1 is off.
        lora_rank (`int`, *optional*, defaults to 0):
            Train adapters of this rank on the linear layers of the backbone's attention instead of the backbone (LoRA,
            by peft, alpha twice the rank); 8 to 16 is usual, 0 is off. Saved models are plain, adapters merged.

    > Inherited, and not in the paper: gradients are clipped at a norm of 1 (`max_grad_norm`; 0 is off).

    > Changed defaults: `weight_decay` 0.05, cosine schedule with a warm-up over 5 % of the steps, 100 epochs of batch
    > 16, `remove_unused_columns` off (the transforms decide what the model sees), losses logged every 50 steps. Off,
    > too, are two that take time at every step: `ddp_find_unused_parameters`, because every parameter gets a gradient,
    > and `logging_nan_inf_filter`, which waits for the GPU to hide from the log what should be seen there.

    Raises:
        ValueError: For an unknown `pair_sampling`, a `pwca_fraction`, `layer_decay` or `lora_rank` out of range, a
            frozen backbone with one of the last two, or a `train_sampling_strategy`: pairs need an order of their own.
        ImportError: If `lora_rank` is given, but peft is not installed.
    """

    pair_sampling: str = field(
        default="any",
        metadata={"help": "Which two images distract each other in PWCA.", "choices": PAIR_SAMPLING},
    )
    pwca_fraction: float = field(
        default=1.0, metadata={"help": "Share of a batch's pairs that take part in PWCA, e.g. 0.5 for half its cost."}
    )
    base_learning_rate: float = field(
        default=5e-4, metadata={"help": "Learning rate for a batch of 512; scaled to the actual total batch."}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "The learning rate itself; base_learning_rate / 512 x batch if not given."}
    )
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Images per device and step."})
    num_train_epochs: float = field(default=100.0, metadata={"help": "Passes over the training images."})
    weight_decay: float = field(
        default=0.05, metadata={"help": "Decay of weight matrices; none on biases, norms, tokens and positions."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Shape of the learning-rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up in steps, or in a share of them below 1."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two lines of losses."})
    freeze_backbone: bool = field(default=False, metadata={"help": "Train GLCA and the heads alone."})
    layer_decay: float = field(
        default=1.0, metadata={"help": "Each block learns at this share of the next one's rate, e.g. 0.75; 1 is off."}
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Train low-rank adapters of the backbone, e.g. 8; 0 is off. Needs peft."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop data-set columns that the model does not take, before the transforms."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search, at every step, for parameters that get no gradient; there are none."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave losses that are not finite out of the log; waits for the GPU."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.check_what_is_trained()
        if self.pair_sampling not in PAIR_SAMPLING:
            raise ValueError(
                f"pair_sampling='{self.pair_sampling}' is unknown; choose one of {', '.join(PAIR_SAMPLING)}."
            )
        if not 0 < self.pwca_fraction <= 1:
            raise ValueError(
                f"pwca_fraction={self.pwca_fraction} must be above 0 and at most 1; leave pwca out of branches to "
                "train without PWCA."
            )
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy='{self.train_sampling_strategy}' would part the pairs of PWCA: leave it at "
                "'random'."
            )
        if self.learning_rate is None:
            self.learning_rate = self.base_learning_rate * self.total_train_batch_size / 512

    def check_what_is_trained(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must be above 0 and at most 1.")
        if self.freeze_backbone and (self.lora_rank > 0 or self.layer_decay < 1):
            raise ValueError("freeze_backbone leaves nothing in the backbone for lora_rank or layer_decay to train.")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank={self.lora_rank} must be at least 1, or 0 for no adapters.")
        if self.lora_rank > 0:
            check_peft()

    @property
    def total_train_batch_size(self) -> int:
        """Images per optimiser step over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size
