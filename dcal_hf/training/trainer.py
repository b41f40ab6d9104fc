"""Trainer for DCAL: pairs for PWCA, per-branch losses in the log, checkpoints that resume bit for bit."""

import logging
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ..classes import class_names
from ..models.validation_dcal import BRANCHES
from ..transforms import SeededDataset
from .class_balance import BalancedCrossEntropy, make_balanced_loss, read_labels
from .fine_tuning_trainer import FineTuningTrainer
from .finite import FiniteWatch, as_step, paths_or_rows
from .inputs import check_best_metric, check_distractors, check_inputs, logged_metrics
from .losses import custom_loss, log_variances, with_counted_rows
from .pairs import DistractedDataset, PairCollator, depends_on_classes
from .samplers import PairSampler
from .sharding import connect_shards, shard_by_blocks
from .training_args import DCALTrainingArguments


logger = logging.getLogger(__name__)


class EpochCallback(TrainerCallback):
    """Reports the current epoch, also after resuming in the middle of one, and has the losses logged at its end.

    Otherwise, steps after the last multiple of `logging_steps` would not be logged at all. The Trainer calls
    `set_epoch` on its data loader only, which does not pass it on through the wrappers that skip or shard batches.

    Args:
        begin_epoch (`Callable`): Called with the epoch number.
    """

    def __init__(self, begin_epoch: Callable[[int], None]):
        self.begin_epoch = begin_epoch
        self.next_epoch = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.next_epoch = int(state.epoch or 0)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Counted, because `state.epoch` stays a fraction if a callback has stopped the last epoch early.
        self.begin_epoch(self.next_epoch)
        self.next_epoch += 1

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_log = control.should_log or args.logging_strategy == "steps"


class DCALTrainer(FineTuningTrainer):
    """`Trainer` for DCAL models. [`~dcal_hf.training.fine_tuning_trainer.FineTuningTrainer`] decides what it trains.

    The predictions passed to `compute_metrics` and returned by `predict` are the logits. If `compute_metrics` has a
    field `branches`, as [`~dcal_hf.metrics.ClassificationMetrics`] does, they are a tuple of the logits of those
    branches, except for `("both",)`.

    Args:
        model (`DCALForImageClassification`, *optional*): Required unless `model_init` is given.
        args (`DCALTrainingArguments`)
        train_dataset: Yields `pixel_values` and `labels`; its transforms are seeded per image and epoch.
        distractor_dataset (*optional*):
            Yields `pixel_values`: images of another data set that replace each image's partner in PWCA (an ablation of
            the paper, Table 4). They are added to the batch and do not contribute to the loss themselves.
        kwargs: As in `transformers.Trainer`. A `compute_loss_func` replaces the cross-entropy of each branch: it takes
            outputs with the `logits` of the branch and the labels of its images, and returns the mean loss.

    Raises:
        TypeError: If the training arguments or the model are of another class, or the training data is a stream.
        ValueError: If one process has several GPUs, since `DataParallel` would split pairs; if
            [`~dcal_hf.training.sharding.shard_by_blocks`] rejects the FSDP options; or if distractors cannot be used.
    """

    args: DCALTrainingArguments
    args_class = DCALTrainingArguments
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module | None = None,
        args: DCALTrainingArguments | None = None,
        train_dataset: Dataset | None = None,
        distractor_dataset: Dataset | None = None,
        **kwargs: Any,
    ):
        check_inputs(type(self).__name__, self.args_class, model, args, train_dataset)
        self.listeners: dict[str, Any] = {}
        self.data_seed = args.seed if args.data_seed is None else args.data_seed
        self.labelled_dataset = train_dataset
        self.pair_sampling = args.pair_sampling
        self.has_distractors = distractor_dataset is not None
        if self.has_distractors:
            # Each image is paired with its own distractor.
            self.pair_sampling = "any"
            train_dataset = DistractedDataset(train_dataset, distractor_dataset)
        if train_dataset is not None:
            train_dataset = self.listeners["dataset"] = SeededDataset(train_dataset, self.data_seed)
        self.finite_watch = FiniteWatch(args.device)
        # On other devices, reading a value synchronizes with the device.
        self.checks_every_step = args.device.type == "cpu"
        super().__init__(model, args, train_dataset=train_dataset, **kwargs)
        if self.has_distractors:
            check_distractors(self.model, args.pair_sampling)
        if self.is_fsdp_enabled:
            shard_by_blocks(self.model, self.accelerator.state.fsdp_plugin)
        self.balanced_loss = self.make_balanced_loss()
        self.add_callback(EpochCallback(self.begin_epoch))
        self.branch_losses: dict[str, list[Tensor]] = defaultdict(list)

    def make_balanced_loss(self) -> BalancedCrossEntropy | None:
        """The loss in training with class weights or logit adjustment; None without them, or without training images.

        Raises:
            ValueError: If `compute_loss_func` is given as well, or a class is unknown or cannot be counted.
        """
        args = self.args
        if self.labelled_dataset is None or (args.class_weights is None and args.logit_adjustment == 0):
            return None
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func replaces the loss that class_weights and logit_adjustment change: give either."
            )
        return make_balanced_loss(
            args.class_weights, args.logit_adjustment, args.label_smoothing_factor, class_names(self.model),
            self.labelled_dataset, args.device,
        )

    def evaluation_metrics(self) -> list[str] | None:
        """Names of the metrics of an evaluation; None if `compute_metrics` does not list its own as `metric_names`."""
        return logged_metrics(self.compute_metrics, self.eval_dataset)

    def begin_epoch(self, epoch: int) -> None:
        """Sets the epoch of the sampler and data set, and logs how many images have no partner in PWCA."""
        for listener in self.listeners.values():
            listener.set_epoch(epoch)
        if self.model.config.uses_pwca and not self.has_distractors and "sampler" in self.listeners:
            self.log({"unpaired_images": self.listeners["sampler"].count_unpaired()})

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> PairSampler:
        self.listeners["sampler"] = PairSampler(
            self.training_labels(), self._train_batch_size, self.pair_sampling, self.data_seed
        )
        return self.listeners["sampler"]

    def training_labels(self) -> np.ndarray:
        """The class of each training image (N,), read without the transform; zeros if pair sampling ignores classes.

        Raises:
            ValueError: If pair sampling uses classes and the data set has no label column.
        """
        if not depends_on_classes(self.pair_sampling):
            return np.zeros(len(self.labelled_dataset), dtype=np.int64)
        return read_labels(self.labelled_dataset, f"pair_sampling='{self.pair_sampling}'")

    def get_train_dataloader(self) -> DataLoader:
        """As in `transformers.Trainer`; with PWCA, batches include `pairs`."""
        collate = self.data_collator
        if self.model.config.uses_pwca:
            self.data_collator = PairCollator(collate, self.pair_sampling, self.args.pwca_fraction)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # The collator takes it; the model never sees it.
        if "distractor" not in self._signature_columns:
            self._signature_columns.append("distractor")

    def _get_dataloader(
        self, *args: Any, is_training: bool = False, dataloader_key: str | None = None, **kwargs: Any
    ) -> DataLoader:
        """Applies `dataloader_drop_last` to training only, so that an evaluation scores all images, and
        `dataloader_persistent_workers` to training and to dataloaders that the Trainer keeps under a key.

        accelerate holds every dataloader, so workers of the others would idle until the end of the process.
        """
        drop_last, persistent = self.args.dataloader_drop_last, self.args.dataloader_persistent_workers
        self.args.dataloader_drop_last = drop_last and is_training
        self.args.dataloader_persistent_workers = persistent and (is_training or dataloader_key is not None)
        try:
            return super()._get_dataloader(*args, is_training=is_training, dataloader_key=dataloader_key, **kwargs)
        finally:
            self.args.dataloader_drop_last, self.args.dataloader_persistent_workers = drop_last, persistent

    def _train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains, unless an evaluation has no `metric_for_best_model`."""
        check_best_metric(self.args, self.evaluation_metrics())
        # An earlier run of this trainer may have been stopped.
        self.finite_watch = FiniteWatch(self.args.device)
        self.branch_losses.clear()
        output = super()._train(*args, **kwargs)
        self.check_finite()
        return output

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[nn.Module, DataLoader]:
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.is_fsdp_enabled:
            connect_shards(self.model)
        return prepared

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager:
        """Uses autocast under FSDP, too, where accelerate would rely on casts at every block."""
        if self.is_fsdp_enabled:
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(cache_enabled)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Passes pair noise, label smoothing and class balance to the model, which computes the loss."""
        if self.compute_loss_func is not None:
            inputs = {**inputs, "criterion": partial(custom_loss, self.compute_loss_func)}
        if model.training:
            if self.args.freeze_backbone:
                # Frozen features cannot adapt to stochastic depth and dropout, so these would only add noise.
                self.model.base_model.backbone.eval()
            if "pairs" in inputs:
                inputs = {**inputs, "pair_noise": self.pair_sampling == "noise"}
            if self.balanced_loss is not None:
                inputs = {**inputs, "criterion": self.balanced_loss}
            elif self.args.label_smoothing_factor > 0 and self.compute_loss_func is None:
                inputs = {**inputs, "smoothing": self.args.label_smoothing_factor}
            if self.has_distractors and inputs["labels"].dim() == 2:
                inputs = with_counted_rows(**inputs)
        outputs = model(**inputs)
        if model.training:
            self.finite_watch.update(self.state.global_step, outputs.loss)
            for name, loss in outputs.losses.items():
                self.branch_losses[name].append(loss.detach())
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """As in `transformers.Trainer`, with the logits of `compute_metrics.branches`, in the order of these."""
        if ignore_keys is not None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        branches = tuple(getattr(self.compute_metrics, "branches", ("both",)))
        scored = {"logits" if name == "both" else f"{name}_logits" for name in branches}
        fields = ["logits", *self.model.config.keys_to_ignore_at_inference]
        ignore_keys = [field for field in fields if field not in scored]
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if logits is not None and branches != ("both",):
            logits = logits if isinstance(logits, tuple) else (logits,)
            if len(logits) == len(branches):
                # The model returns them in the order of the fields of its output.
                by_branch = dict(zip(sorted(branches, key=("both", *BRANCHES).index), logits))
                logits = tuple(by_branch[name] for name in branches)
        return loss, logits, labels

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor | float | None:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # In half precision, scaled gradients overflow occasionally; the scaler skips those steps.
        if isinstance(grad_norm, Tensor) and self.accelerator.scaler is None:
            self.finite_watch.update(self.state.global_step, grad_norm)
        if self.checks_every_step:
            self.check_finite()
        return grad_norm

    def check_finite(self) -> None:
        """
        Raises:
            FloatingPointError: If a loss or gradient was not finite; names the first step, the epoch and the images.
        """
        # Every process sees averaged gradients, but scaled ones are not checked: gather the step from all processes.
        first = self.finite_watch.first()
        step = as_step(first if self.checks_every_step else self.accelerator.gather(first))
        if step is None:
            return
        accumulated = self.args.gradient_accumulation_steps
        epoch, place = divmod(step, -(-len(self.callback_handler.train_dataloader) // accumulated))
        sampler, size = self.listeners["sampler"], self._train_batch_size * accumulated * self.args.world_size
        sampler.set_epoch(epoch)
        images = paths_or_rows(self.labelled_dataset, list(sampler)[place * size:(place + 1) * size])
        logger.error("The images of step %d: %s", step + 1, ", ".join(images))
        raise FloatingPointError(
            f"The loss or the gradients of step {step + 1}, in epoch {epoch + 1}, are not finite: check its "
            f"{len(images)} images ({', '.join(images[:3])}{', ...' if len(images) > 3 else ''}), or lower the "
            "learning rate and resume from the last checkpoint."
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds each branch's mean loss since the last log, over all processes, and its log-variance now: `loss_sa`,
        `log_var_sa`, ..."""
        if "loss" in logs and not self.checks_every_step:
            self.check_finite()
        if "loss" in logs and self.branch_losses:
            # A process whose images have no partners has no PWCA loss.
            zero = torch.zeros((), device=self.args.device)
            losses = [self.branch_losses[name] for name in BRANCHES]
            sums = torch.stack([torch.stack([zero, *own]).sum() for own in losses])
            counts = torch.tensor([len(own) for own in losses], device=sums.device)
            sums, counts = (self.accelerator.reduce(x, reduction="sum").tolist() for x in (sums, counts))
            means = {name: total / count for name, total, count in zip(BRANCHES, sums, counts) if count > 0}
            logs.update({f"loss_{name}": round(mean, 4) for name, mean in means.items()})
            logs.update(log_variances(self.model))
            self.branch_losses.clear()
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not self.checks_every_step:
            self.check_finite()
        super()._save_checkpoint(model, trial)


__all__ = ["DCALTrainer"]
