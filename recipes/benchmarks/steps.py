"""The models of `bench_model.py`, plain and with DCAL, and their steps: single ones, and those of a Trainer run."""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from harness import now, peak_memory
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
)

from dcal_hf import DCALConfig, DCALForImageClassification, DCALTrainer, DCALTrainingArguments


NUM_CLASSES = 200


def vit(width: int, heads: int, **fields: object) -> ViTConfig:
    """DeiT's and ViT's sizes: 12 blocks, patches of 16 pixels, an MLP four times as wide."""
    return ViTConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, **fields)


@dataclass(frozen=True)
class Shape:
    """A backbone of twelve blocks at an input size, and DCAL's ratio of local queries for it."""

    title: str
    width: int
    heads: int
    image_size: tuple[int, int]
    batch: int
    local_query_ratio: float

    @property
    def backbone(self) -> ViTConfig:
        return vit(self.width, self.heads, image_size=list(self.image_size), num_labels=NUM_CLASSES)


SHAPES = {
    "deit_tiny": Shape("DeiT-Tiny, 448 x 448", 192, 3, (448, 448), 4, 0.1),
    "vit_base": Shape("ViT-Base, 256 x 128", 768, 12, (256, 128), 8, 0.3),
}


@dataclass(frozen=True)
class Model:
    """A model to measure.

    Args:
        fields (`dict`): How its DCAL differs from the default; the plain ViT is DCAL's with SA alone.
        pwca_fraction (`float`): Of the pairs of a batch, the share that takes part in PWCA.
    """

    title: str
    fields: dict[str, object] = field(default_factory=dict)
    pwca_fraction: float = 1.0


PLAIN = "plain"
MODELS = {
    PLAIN: Model("plain ViT, transformers", {"branches": ("sa",)}),
    "dcal": Model("DCAL, T = 12"),
    "t6": Model("DCAL, T = 6", {"num_pwca_blocks": 6}),
    "half": Model("DCAL, T = 12, `--pwca_fraction 0.5`", pwca_fraction=0.5),
    "t6-half": Model("DCAL, T = 6, `--pwca_fraction 0.5`", {"num_pwca_blocks": 6}, 0.5),
    "local": Model("DCAL, T = 12, readout `local`", {"glca_readout": "local"}),
    "similarity": Model(
        "DCAL, T = 12, readout `local`, selection `similarity`",
        {"glca_readout": "local", "local_query_selection": "similarity"},
    ),
    "sa": Model("DCAL, SA only", {"inference_branches": ("sa",)}),
}


@dataclass(frozen=True)
class Setting:
    """Device, precision and attention of the steps."""

    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    attention: str = "sdpa"

    def autocast(self) -> AbstractContextManager:
        dtype = getattr(torch, self.dtype)
        return torch.autocast(self.device, dtype=dtype, enabled=dtype != torch.float32)


def batch_size(args: argparse.Namespace, shape: Shape) -> int:
    """Images per step."""
    return args.batch or (64 if args.device == "cuda" else shape.batch)


def memory(before: int, setting: Setting) -> int:
    """The peak memory in bytes above the imports; on a GPU, of the GPU."""
    return torch.cuda.max_memory_allocated() if setting.device == "cuda" else peak_memory() - before


def dcal_config(shape: Shape, model: str) -> DCALConfig:
    fields = {"local_query_ratio": shape.local_query_ratio, **MODELS[model].fields}
    return DCALConfig(backbone_config=shape.backbone, num_labels=NUM_CLASSES, **fields)


def build(shape: Shape, model: str, setting: Setting) -> PreTrainedModel:
    """A model with random weights."""
    config = shape.backbone if model == PLAIN else dcal_config(shape, model)
    built = AutoModelForImageClassification.from_config(config, attn_implementation=setting.attention)
    return built.to(setting.device)


def random_batch(shape: Shape, batch: int, device: str = "cpu") -> dict[str, Tensor]:
    return {
        "pixel_values": torch.randn(batch, 3, *shape.image_size, device=device),
        "labels": torch.randint(NUM_CLASSES, (batch,), device=device),
    }


def pairs(model: nn.Module, batch: int, fraction: float = 1.0) -> dict[str, Tensor]:
    """Pairs of images 2k and 2k + 1 if the model has PWCA: a fraction of them, rounded, at least one."""
    if not isinstance(model, DCALForImageClassification) or not model.config.uses_pwca:
        return {}
    rows = torch.arange(batch).view(-1, 2)
    return {"pairs": rows[:max(round(fraction * len(rows)), 1)]}


def make_step(work: str, shape: Shape, model_name: str, batch: int, setting: Setting) -> Callable[[], None]:
    """A step of a new model on random images.

    Args:
        work (`str`): `"infer"`, forward without gradients, or `"train"`, forward, loss, backward and AdamW: in its
            fused form, which is the Trainer's default.
    """
    model = build(shape, model_name, setting)
    inputs = random_batch(shape, batch, setting.device) | pairs(model, batch, MODELS[model_name].pwca_fraction)
    model.train(work == "train")
    run = torch.compile(model) if setting.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    def infer() -> None:
        with torch.no_grad(), setting.autocast():
            run(inputs["pixel_values"])

    def train() -> None:
        with setting.autocast():
            loss = run(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train if work == "train" else infer


class StepTimes(TrainerCallback):
    """Records the time at the end of each training or prediction step."""

    def __init__(self):
        self.times: list[float] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.times.append(now())

    on_prediction_step = on_step_end


def trainer_seconds(
    model: nn.Module, shape: Shape, batch: int, setting: Setting, steps: int, predicts: bool = False, **options: object
) -> float:
    """The median of the seconds between the ends of the steps of a Trainer run, including data loading.

    The data are random tensors, decoded already. The first step is left out.

    Args:
        batch (`int`): Images per step, over its micro-batches if `options` have `gradient_accumulation_steps`.
        predicts (`bool`): A step is one of `Trainer.predict`, not of training.
        options: Of the training arguments.
    """
    is_dcal = isinstance(model, DCALForImageClassification)
    classes = (DCALTrainer, DCALTrainingArguments) if is_dcal else (Trainer, TrainingArguments)
    tensors = random_batch(shape, batch).values()
    images = [{"pixel_values": pixels, "labels": label} for pixels, label in zip(*tensors, strict=True)]
    step_times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        arguments = classes[1](
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
        trainer = classes[0](model, arguments, train_dataset=images, callbacks=[step_times])
        if predicts:
            trainer.predict(images * (steps + 1))
        else:
            trainer.train()
    return statistics.median(later - earlier for earlier, later in pairwise(step_times.times))
