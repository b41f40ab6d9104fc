"""Trainer of DCAL: pairs for PWCA, per-branch losses in the log, checkpoints that come back bit for bit."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .samplers import sample_pairs
from .training_args import DCALTrainingArguments
from .transforms import SeededDataset


# Parameters that are no weight matrices, by the last part of their name; biases and norms are known to transformers.
NO_DECAY = (
    "cls_token",
    "class_embedding",
    "distillation_token",
    "register_tokens",
    "position_embeddings",
    "position_embedding.weight",
    "lambda1",
    "log_vars",
    "necks.sa.weight",
    "necks.glca.weight",
)


class EpochCallback(TrainerCallback):
    """Tells what draws the training data which epoch it is, also when a run resumes in the middle of one.

    The Trainer tells its data loader, but does not reach through the wrappers that skip batches or shard them.

    Attributes:
        listeners (`dict`): What has a `set_epoch`, by any name.
    """

    def __init__(self):
        self.listeners: dict[str, Any] = {}

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for listener in self.listeners.values():
            listener.set_epoch(int(state.epoch or 0))


class DCALTrainer(Trainer):
    """`Trainer` for DCAL models.

    Args:
        model (`DCALForImageClassification`)
        args (`DCALTrainingArguments`)
        train_dataset: Gives `pixel_values` and `labels`; its transforms are seeded per image and epoch.
        kwargs: As in `transformers.Trainer`.

    Raises:
        ValueError: On several GPUs in one process: `DataParallel` would tear pairs apart.
    """

    args: DCALTrainingArguments
    loss_is_scaled_for_ga = False

    def __init__(
        self, model: nn.Module, args: DCALTrainingArguments, train_dataset: Dataset | None = None, **kwargs: Any
    ):
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process would split pairs of images: start one process per GPU with "
                "`accelerate launch`, or show this one a single GPU (CUDA_VISIBLE_DEVICES=0)."
            )
        self.epoch_callback = EpochCallback()
        if train_dataset is not None:
            data_seed = args.seed if args.data_seed is None else args.data_seed
            train_dataset = self.epoch_callback.listeners["dataset"] = SeededDataset(train_dataset, data_seed)
        super().__init__(model, args, train_dataset=train_dataset, **kwargs)
        self.add_callback(self.epoch_callback)
        self.branch_losses: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=args.device))
        self.num_branch_losses = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Adds the pairs and the label smoothing to a training batch; the model computes its loss itself."""
        if model.training:
            inputs = {**inputs, **self.pairs(inputs["labels"])}
            inputs["labels"] = self.smooth(inputs["labels"])
        outputs = model(**inputs)
        if model.training:
            for name, loss in outputs.losses.items():
                self.branch_losses[name] += loss.detach()
            self.num_branch_losses += 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def pairs(self, labels: Tensor) -> dict[str, Tensor | bool]:
        """The model's arguments for the PWCA branch."""
        if not self.model.config.uses_pwca:
            return {}
        if self.args.pair_sampling == "noise":
            return {"pair_noise": True}
        return {"pair_index": sample_pairs(labels, self.args.pair_sampling)}

    def smooth(self, labels: Tensor) -> Tensor:
        """Labels (B,) as they are, or, with label smoothing, as probabilities (B, classes)."""
        epsilon = self.args.label_smoothing_factor
        if epsilon == 0:
            return labels
        num_labels = self.model.config.num_labels
        return nn.functional.one_hot(labels, num_labels) * (1 - epsilon) + epsilon / num_labels

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean loss of each branch since the last line, over all processes: `loss_sa`, ..."""
        if "loss" in logs and self.num_branch_losses > 0:
            means = torch.stack(list(self.branch_losses.values())) / self.num_branch_losses
            means = self.accelerator.reduce(means, reduction="mean").tolist()
            logs.update({f"loss_{name}": round(value, 4) for name, value in zip(self.branch_losses, means)})
            self.branch_losses.clear()
            self.num_branch_losses = 0
        super().log(logs, *args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """No decay on biases, norms, CLS and other tokens, positions, layer scales and log-variances."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith(NO_DECAY)]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # Checkpoints hold the original names of ViT weights; only from_pretrained maps them back (transformers#48805).
        model = self.model if model is None else model
        loaded = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
        model.load_state_dict(loaded.state_dict())

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
            return
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def last_checkpoint(output_dir: str | Path) -> str:
    """The newest complete checkpoint of a run: the Trainer writes `trainer_state.json` last.

    Raises:
        FileNotFoundError: If there is none.
    """
    complete = [path.parent for path in Path(output_dir).glob("checkpoint-*/trainer_state.json")]
    if not complete:
        raise FileNotFoundError(
            f"No complete checkpoint in {output_dir}: start without --resume_from_checkpoint, or name a checkpoint."
        )
    return str(max(complete, key=lambda path: int(path.name.removeprefix("checkpoint-"))))


__all__ = ["DCALTrainer", "last_checkpoint"]
