"""A real Trainer run of a few steps on random tensors: what a user's training costs beside the bare loop."""

import tempfile
import time

import torch
from steps import Setting, Shape, random_batch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dcal_hf import DCALForImageClassification, DCALTrainer, DCALTrainingArguments


class Stopwatch(TrainerCallback):
    """When each step ended, of training or of prediction."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.times: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.setting.synchronize()
        self.times.append(time.perf_counter())

    on_prediction_step = on_step_end


def trainer_seconds(
    model: nn.Module, shape: Shape, batch: int, setting: Setting, steps: int, predicts: bool = False, **options: object
) -> list[float]:
    """Seconds from the end of one step to the end of the next, loading of the data included; the first is left out.

    Args:
        batch (`int`): Images per step, over its micro-batches if `options` have `gradient_accumulation_steps`.
        predicts (`bool`): A step is one of `Trainer.predict`, not of training.
        options: Of the training arguments.
    """
    is_dcal = isinstance(model, DCALForImageClassification)
    trainer_class, arguments_class = (
        (DCALTrainer, DCALTrainingArguments) if is_dcal else (Trainer, TrainingArguments)
    )
    stopwatch = Stopwatch(setting)
    with tempfile.TemporaryDirectory() as folder:
        arguments = arguments_class(
            folder,
            per_device_train_batch_size=batch // options.get("gradient_accumulation_steps", 1),
            per_device_eval_batch_size=batch,
            max_steps=steps + 1,
            weight_decay=0.05,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=setting.device == "cpu",
            **{"bf16": setting.dtype == "bfloat16", "torch_compile": setting.compile, **options},
        )
        trainer = trainer_class(model, arguments, train_dataset=images(shape, batch), callbacks=[stopwatch])
        if predicts:
            trainer.predict(images(shape, batch) * (steps + 1))
        else:
            trainer.train()
    return torch.tensor(stopwatch.times, dtype=torch.float64).diff().tolist()


def images(shape: Shape, count: int) -> list[dict[str, Tensor]]:
    """A data set of random tensors, decoded already."""
    batch = random_batch(shape, count, Setting())
    return [{"pixel_values": pixels, "labels": label} for pixels, label in zip(*batch.values(), strict=True)]
