"""Arguments of [`DCALTrainer`]."""

import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from .class_balance import check_class_balance, read_class_weights
from .lora import LORA_TARGETS, check_peft
from .pairs import PAIR_SAMPLING


# The smallest values of options that transformers does not check.
MINIMA = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "eval_accumulation_steps": 1,
    "base_learning_rate": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "label_smoothing_factor": 0,
    "logging_steps": 0,
    "eval_steps": 0,
    "eval_delay": 0,
    "save_steps": 0,
    "seed": 0,
    "data_seed": 0,
    "dataloader_num_workers": 0,
}


def without_folder(value: Any) -> Any:
    """Reduces an absolute path to its last part; other values are returned unchanged."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


@dataclass
class DCALTrainingArguments(TrainingArguments):
    r"""
    `TrainingArguments` with the defaults of the paper's fine-grained recipe (section 4.1: DeiT's recipe at a small
    batch size), with AdamW where the paper says Adam. Stochastic depth is a field of the model configuration,
    `drop_path_rate`, off by default.

    > Parameters that control the pairs of PWCA

    Args:
        pair_sampling (`str`, *optional*, defaults to `"any"`):
            Which two training images distract each other: any two (`"any"`), two of different classes
            (`"inter_class"`), two of the same class (`"intra_class"`), or half of the pairs of either kind (`"half"`).
            With `"noise"`, Gaussian noise replaces the keys and values of the distractor. Table 4 of the paper
            compares these strategies. The sampler orders each epoch such that images 2k and 2k + 1 of a batch are a
            pair. The number of images without a partner is logged once per epoch as `unpaired_images`.
        pwca_fraction (`float`, *optional*, defaults to 1.0):
            Share of the pairs of a batch for which PWCA runs. Reduces its cost, as `num_pwca_blocks` does.

    > Parameters that control the learning rate

    Args:
        base_learning_rate (`float`, *optional*, defaults to 5e-4):
            The learning rate for a batch of 512 images.
        learning_rate (`float`, *optional*):
            The learning rate. By default `base_learning_rate / 512 x batch`, with the batch over all processes and
            accumulation steps.

    > Parameters for classes of unequal size, applied in training only

    Args:
        class_weights (`str` or `dict`, *optional*):
            Weight of each class in the loss of each branch: `"balanced"`, in inverse proportion to its number of
            training images, or weights by class name, `{"robin": 2.0}` (JSON on the command line), with 1 for the
            others.
        logit_adjustment (`float`, *optional*, defaults to 0.0):
            Add this factor times the logarithm of each class's share of the training images to the logits in the loss
            (Menon et al. 2021, https://huggingface.co/papers/2007.07314), so that the logits at inference are those of
            the balanced error. The usual value is 1; 0 disables it. Both options correct the same imbalance; one of
            them is usually enough.

    > Parameters that control what is trained. GLCA, necks, heads and log-variances are always trained in full.

    Args:
        freeze_backbone (`bool`, *optional*, defaults to `False`):
            Freeze the backbone, including its final norm, while `train` runs, and run it without stochastic depth and
            dropout.
        layer_decay (`float`, *optional*, defaults to 1.0):
            Layer-wise learning-rate decay: the learning rate of each block of the backbone is that of the next block
            times this factor, see [`~dcal_hf.training.parameter_groups.parameter_groups`]. Common values are 0.65 to
            0.75; 1 disables it.
        lora_rank (`int`, *optional*, defaults to 0):
            Train adapters of this rank on linear layers of the backbone instead of the backbone (LoRA, with peft and
            an alpha of twice the rank). Common values are 8 to 16; 0 disables it. Saved models have the adapters
            merged.
        lora_targets (`str`, *optional*, defaults to `"attention"`):
            The linear layers that have adapters: those of the `"attention"`, or `"all"` of each block, the FFN's too.

    > Inherited default, not in the paper: gradients are clipped at a norm of 1 (`max_grad_norm`; 0 disables it).

    > Changed defaults: `weight_decay` 0.05, cosine schedule with a warm-up over 5 % of the steps, 100 epochs with a
    > batch size of 16, `remove_unused_columns` off (the transforms decide what the model sees), losses logged every 50
    > steps. Two options that cost time at every step are off: `ddp_find_unused_parameters`, because every parameter
    > gets a gradient, and `logging_nan_inf_filter`, which synchronises with the GPU and hides infinite losses.

    Raises:
        ValueError: For an unknown `pair_sampling` or `lora_targets`, a number out of range, wrong `class_weights`, a
            frozen backbone with `layer_decay` or `lora_rank`, or a `train_sampling_strategy` or `dispatch_batches`,
            because pairs need an order of their own.
        ImportError: If `lora_rank` is given, but peft is not installed.
    """

    pair_sampling: str = field(
        default="any",
        metadata={"help": "Which two images distract each other in PWCA.", "choices": PAIR_SAMPLING},
    )
    pwca_fraction: float = field(
        default=1.0, metadata={"help": "Share of a batch's pairs for which PWCA runs, e.g. 0.5 for half its cost."}
    )
    base_learning_rate: float = field(
        default=5e-4, metadata={"help": "Learning rate for a batch of 512; scaled to the actual total batch."}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "The learning rate; base_learning_rate / 512 x batch if not given."}
    )
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Images per device and step."})
    num_train_epochs: float = field(default=100.0, metadata={"help": "Passes over the training images."})
    weight_decay: float = field(
        default=0.05, metadata={"help": "Weight decay; biases, norms, tokens and positions have none."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The learning-rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up in steps, or below 1 as a share of all."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two logs of the losses."})
    class_weights: dict[str, float] | str | None = field(
        default=None, metadata={"help": "balanced, or weights of classes as JSON: '{\"robin\": 2.0}', others 1."}
    )
    logit_adjustment: float = field(
        default=0.0, metadata={"help": "Factor of the log class shares added to training logits, e.g. 1; 0 for none."}
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "Train only GLCA, necks and heads."})
    layer_decay: float = field(
        default=1.0, metadata={"help": "Learning rate of a block relative to the next one, e.g. 0.75; 1 disables it."}
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Rank of LoRA adapters in the backbone, e.g. 8; 0 disables them. Needs peft."}
    )
    lora_targets: str = field(
        default="attention",
        metadata={"help": "Linear layers with adapters: attention, or all of each block.", "choices": LORA_TARGETS},
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Remove what the model does not accept: after the transforms in training, else before."},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search for parameters without gradients at every step; there are none."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide non-finite losses in the log; synchronises with the GPU."}
    )

    def __post_init__(self):
        self.class_weights = read_class_weights(self.class_weights)
        super().__post_init__()
        self.check_numbers()
        self.check_what_is_trained()
        check_class_balance(self.class_weights, self.logit_adjustment)
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
                f"train_sampling_strategy='{self.train_sampling_strategy}' would separate the pairs of PWCA: leave it "
                "at 'random'."
            )
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "accelerator_config: dispatch_batches would give each process pairs of PWCA that are those of other "
                "images: leave it out."
            )
        if self.learning_rate is None:
            self.learning_rate = self.base_learning_rate * self.total_train_batch_size / 512

    @cached_property
    def _setup_devices(self) -> torch.device:
        # On the CPU transformers does not pass `ddp_timeout` on, and a stopped process is waited for. A group of
        # processes that exists is kept.
        if self.use_cpu:
            PartialState(cpu=True, backend=self.ddp_backend, timeout=self.ddp_timeout_delta)
        return super()._setup_devices

    def __getstate__(self) -> dict[str, Any]:
        """Removes tokens and the folders of paths, because `push_to_hub` uploads the pickled `training_args.bin`."""
        state = {name: without_folder(value) for name, value in self.__dict__.items()}
        return state | {name: None for name in state if name.endswith("token")}

    def __copy__(self) -> "DCALTrainingArguments":
        """A complete copy; by default it would lack what a pickle lacks."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> "DCALTrainingArguments":
        """A complete copy; see [`__copy__`]."""
        copied = copy.copy(self)
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def check_numbers(self) -> None:
        """Raises a `ValueError` for a number that is too small, which would otherwise fail where it is used."""
        for name, minimum in MINIMA.items():
            value = getattr(self, name)
            if value is not None and not value >= minimum:  # NaN, too
                raise ValueError(f"{name}={value} must be at least {minimum}.")
        if not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs={self.num_train_epochs} must be above 0.")
        # transformers would train one step.
        if self.max_steps == 0:
            raise ValueError("max_steps=0 must be at least 1, or -1 to train for num_train_epochs.")

    def check_what_is_trained(self) -> None:
        """Raises a `ValueError` if `layer_decay`, `freeze_backbone`, `lora_rank` or `lora_targets` is wrong."""
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must be above 0 and at most 1.")
        if self.freeze_backbone and (self.lora_rank > 0 or self.layer_decay < 1):
            raise ValueError(
                "freeze_backbone cannot be combined with lora_rank or layer_decay: it leaves no trainable parameters "
                "in the backbone."
            )
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank={self.lora_rank} must be at least 1, or 0 for no adapters.")
        if self.lora_targets not in LORA_TARGETS:
            raise ValueError(
                f"lora_targets='{self.lora_targets}' is unknown; choose one of {', '.join(LORA_TARGETS)}."
            )
        if self.lora_rank > 0:
            check_peft()

    @property
    def total_train_batch_size(self) -> int:
        """Images per optimiser step over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size
