"""The models of the model benchmark, plain and with DCAL, and one step of training or inference with each."""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import timm
import torch
from harness import peak_memory
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoModelForImageClassification, PreTrainedModel, ViTConfig

from dcal_hf import DCALConfig, DCALForImageClassification


NUM_CLASSES, LAYERS = 200, 12
Step = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    """A backbone at an input size, and DCAL's ratio of local queries for it."""

    title: str
    timm_name: str
    width: int
    heads: int
    image_size: tuple[int, int]
    batch: int
    local_query_ratio: float

    @property
    def backbone(self) -> ViTConfig:
        return ViTConfig(
            hidden_size=self.width,
            num_hidden_layers=LAYERS,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            image_size=list(self.image_size),
            num_labels=NUM_CLASSES,
        )


SHAPES = {
    "deit_tiny": Shape("DeiT-Tiny, 448 x 448", "deit_tiny_patch16_224", 192, 3, (448, 448), 4, 0.1),
    "vit_base": Shape("ViT-Base, 256 x 128", "vit_base_patch16_224", 768, 12, (256, 128), 8, 0.3),
}
# What differs from DCAL's defaults in the models that are measured.
DCAL = {
    "local-12": {},
    "local-6": {"num_pwca_blocks": 6},
    "local-0": {"num_pwca_blocks": 0},
    "local-12-half": {},
    "local-6-half": {"num_pwca_blocks": 6},
    "cls-12": {"glca_readout": "cls"},
    "cls-0": {"glca_readout": "cls", "num_pwca_blocks": 0},
    "similarity-12": {"local_query_selection": "similarity"},
    "sa": {"inference_branches": ("sa",)},
}
# Of the pairs of a batch, the share that takes part in PWCA, where it is not all.
PWCA_FRACTION = {"local-12-half": 0.5, "local-6-half": 0.5}


@dataclass(frozen=True)
class Setting:
    """What the steps run on, and how."""

    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    attention: str = "sdpa"

    def autocast(self) -> AbstractContextManager:
        dtype = getattr(torch, self.dtype)
        return torch.autocast(self.device, dtype=dtype, enabled=dtype != torch.float32)

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def add_arguments(parser: argparse.ArgumentParser, shapes: dict[str, Shape]) -> None:
    """The options of a benchmark over shapes."""
    parser.add_argument("--shapes", nargs="+", choices=shapes, default=list(shapes))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of autocast")
    parser.add_argument("--batch", type=int, help="default: 4 and 8 on the CPU, 64 on a GPU")


def batches(args: argparse.Namespace, shapes: dict[str, Shape]) -> dict[str, int]:
    """Images per step of each shape that was asked for."""
    return {name: args.batch or (64 if args.device == "cuda" else shapes[name].batch) for name in args.shapes}


def memory(before: int, setting: Setting) -> int:
    """Bytes above the imports at the worst moment; on a GPU, of its own memory."""
    return torch.cuda.max_memory_allocated() if setting.device == "cuda" else peak_memory() - before


def dcal_config(shape: Shape, model: str) -> DCALConfig:
    """The configuration of a DCAL model; of a plain one, for its FLOPs, that of SA alone."""
    fields = DCAL.get(model, {"branches": ("sa",)})
    return DCALConfig(
        backbone_config=shape.backbone, num_labels=NUM_CLASSES, local_query_ratio=shape.local_query_ratio, **fields
    )


def build(shape: Shape, model: str, setting: Setting) -> nn.Module:
    """A model with random weights: plain, by `transformers` or `timm`, or a key of `DCAL`."""
    if model == "timm":
        built = timm.create_model(shape.timm_name, img_size=shape.image_size, num_classes=NUM_CLASSES)
    else:
        config = dcal_config(shape, model) if model in DCAL else shape.backbone
        built = AutoModelForImageClassification.from_config(config, attn_implementation=setting.attention)
    return built.to(setting.device)


def random_batch(shape: Shape, batch: int, setting: Setting) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.randn(batch, 3, *shape.image_size, device=setting.device),
        "labels": torch.randint(NUM_CLASSES, (batch,), device=setting.device),
    }


def pairs(model: nn.Module, batch: int, fraction: float = 1.0) -> dict[str, Tensor]:
    """Images 2k and 2k + 1, where the model has PWCA: of the pairs a share, rounded, at least one."""
    if not isinstance(model, DCALForImageClassification) or not model.config.uses_pwca:
        return {}
    rows = torch.arange(batch).view(-1, 2)
    return {"pairs": rows[:max(round(fraction * len(rows)), 1)]}


def training_step(model: nn.Module, batch: dict[str, Tensor], setting: Setting) -> Step:
    """Forward, loss, backward, AdamW: in its fused form, which is the Trainer's default."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    model.train()
    is_timm = not isinstance(model, PreTrainedModel)
    run = torch.compile(model) if setting.compile else model

    def step() -> None:
        with setting.autocast():
            if is_timm:
                loss = nn.functional.cross_entropy(run(batch["pixel_values"]), batch["labels"])
            else:
                loss = run(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_step(model: nn.Module, batch: dict[str, Tensor], setting: Setting) -> Step:
    """Forward, without gradients."""
    run = torch.compile(model.eval()) if setting.compile else model.eval()

    def step() -> None:
        with torch.no_grad(), setting.autocast():
            run(batch["pixel_values"])

    return step


STEPS = {"train": training_step, "infer": inference_step}
# torch's formulas, handed over for the CPU's fused attention too: up to 2.14 its counter takes that for nothing.
FUSED_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *args, **kwargs: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *args, **kwargs: sdpa_backward_flop_count(grad, query, key, value)
    ),
}


def counted_flops(work: str, model: nn.Module, batch: dict[str, Tensor], setting: Setting) -> int:
    """FLOPs of the matrix products that a step really makes, a fused attention's recomputation too."""
    if isinstance(model, PreTrainedModel) and setting.attention.startswith("flash"):
        # torch knows the formulas of its own kernels only; these make the same products.
        model.set_attn_implementation("sdpa")
    step = STEPS[work](model, batch, replace(setting, compile=False))
    with FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU) as counter:
        step()
    return counter.get_total_flops()
