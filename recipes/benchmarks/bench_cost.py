"""Counts what DCAL adds to each backbone of the paper: parameters and FLOPs, at inference and in training.

    python recipes/benchmarks/bench_cost.py                                      # writes recipes/benchmarks/cost.md

Nothing is computed: with fake tensors torch counts the matrix products without making them.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from harness import bullets, markdown_table, write_report
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, SwinConfig, TimmWrapperConfig, ViTConfig
from transformers.initialization import no_init_weights

from dcal_hf import DCALForImageClassification, DCALForReID, DCALModel
from dcal_hf.models import DCALPreTrainedModel


def vit(width: int, heads: int) -> ViTConfig:
    """DeiT's and ViT's sizes: 12 blocks, patches of 16 pixels, an MLP four times as wide."""
    return ViTConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width)


TINY, SMALL, BASE = partial(vit, 192, 3), partial(vit, 384, 6), partial(vit, 768, 12)
R50_VIT_BASE = partial(TimmWrapperConfig, architecture="vit_base_r50_s16_224")
CAIT_XS24 = partial(TimmWrapperConfig, architecture="cait_xs24_384")
PWCA_ALONE = {"branches": ("sa", "pwca")}


@dataclass(frozen=True)
class Task:
    """A data set of the paper and how its models are built.

    At inference re-identification needs no classifier: it compares embeddings.
    """

    title: str
    num_labels: int
    trained: type[DCALPreTrainedModel]
    inferred: type[DCALPreTrainedModel]
    fields: dict[str, object]


CUB = Task("CUB-200-2011", 200, DCALForImageClassification, DCALForImageClassification, {"local_query_ratio": 0.1})
REID = DCALForReID.config_defaults
VERI = Task("VeRi-776", 576, DCALForReID, DCALModel, REID)
MSMT = Task("MSMT17", 1041, DCALForReID, DCALModel, REID)


@dataclass(frozen=True)
class Row:
    """One backbone on one task.

    Args:
        published: The paper's parameters and FLOPs, in per cent more.
        fields: Of `DCALConfig`, what the backbone wants.
    """

    backbone: str
    config: Callable[[], PreTrainedConfig]
    task: Task
    image_size: tuple[int, int]
    published: tuple[int, int] | None = None
    fields: dict[str, object] = field(default_factory=dict)


ROWS = (
    Row("DeiT-Tiny", TINY, CUB, (448, 448), published=(9, 2)),
    Row("DeiT-Small", SMALL, CUB, (448, 448)),
    Row("DeiT-Base, ViT-Base", BASE, CUB, (448, 448)),
    Row("R50-ViT-Base", R50_VIT_BASE, CUB, (448, 448)),
    Row("CaiT-XS24", CAIT_XS24, CUB, (448, 448)),
    Row("Swin-T, PWCA alone", SwinConfig, CUB, (448, 448), fields=PWCA_ALONE),
    Row("DeiT-Tiny", TINY, VERI, (256, 256)),
    Row("DeiT-Small", SMALL, VERI, (256, 256)),
    Row("DeiT-Base, ViT-Base", BASE, VERI, (256, 256), published=(8, 3)),
    Row("DeiT-Tiny", TINY, MSMT, (256, 128)),
    Row("DeiT-Small", SMALL, MSMT, (256, 128)),
    Row("DeiT-Base, ViT-Base", BASE, MSMT, (256, 128)),
    Row("Swin-T, PWCA alone", SwinConfig, MSMT, (256, 128), fields=PWCA_ALONE),
)


@dataclass(frozen=True)
class Cost:
    """Parameters, and FLOPs of one image."""

    parameters: int
    flops: int


@dataclass(frozen=True)
class Costs:
    """What a row of the table says. Selection at random costs nothing: it stands for a rollout that is not counted."""

    baseline: Cost
    dcal: Cost
    dcal_with_rollout: Cost
    baseline_training: Cost
    dcal_training: Cost

    @property
    def parameters_percent(self) -> float:
        return 100 * (self.dcal.parameters / self.baseline.parameters - 1)

    @property
    def flops_percent(self) -> float:
        return 100 * (self.dcal.flops / self.baseline.flops - 1)

    @property
    def rollout_percent(self) -> float:
        return 100 * (self.dcal_with_rollout.flops / self.baseline.flops - 1)

    @property
    def training_ratio(self) -> float:
        return self.dcal_training.flops / self.baseline_training.flops


def build(row: Row, model_class: type[DCALPreTrainedModel], **fields: object) -> DCALPreTrainedModel:
    # Eager attention is what the paper's formulas say; a fused one computes its scores twice in backward.
    fields = {**row.task.fields, "attn_implementation": "eager", **row.fields, **fields}
    with no_init_weights():
        return model_class.from_backbone(row.config(), row.image_size, num_labels=row.task.num_labels, **fields)


def fake_tensors() -> FakeTensorMode:
    """Shapes are worked out, products are not."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def inference_cost(row: Row, **fields: object) -> Cost:
    """One image through a model that is used."""
    model = build(row, row.task.inferred, **fields).eval()
    with torch.no_grad(), fake_tensors(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *row.image_size))
    return Cost(num_parameters(model, "loss_weights"), counter.get_total_flops())


def training_cost(row: Row, **fields: object) -> Cost:
    """One image's share of a training step on two."""
    model = build(row, row.task.trained, **fields).train()
    pair = {"pairs": torch.tensor([[0, 1]])} if model.config.uses_pwca else {}
    with fake_tensors(), FlopCounterMode(display=False) as counter:
        labels = torch.zeros(2, dtype=torch.int64)
        model(torch.empty(2, 3, *row.image_size), labels=labels, **pair).loss.backward()
    return Cost(num_parameters(model), counter.get_total_flops() // 2)


def num_parameters(model: nn.Module, without: str = "") -> int:
    """Trained parameters; those of the loss are of no use at inference."""
    kept = [p for name, p in model.named_parameters() if not (without and name.startswith(without))]
    return sum(p.numel() for p in kept)


def costs(row: Row) -> Costs:
    plain = {"branches": ("sa",)}
    return Costs(
        baseline=inference_cost(row, **plain),
        dcal=inference_cost(row, local_query_selection="random"),
        dcal_with_rollout=inference_cost(row),
        baseline_training=training_cost(row, **plain),
        dcal_training=training_cost(row),
    )


def cells(row: Row) -> list[str]:
    """A line of the table."""
    cost = costs(row)
    published = "" if row.published is None else "+{} %, +{} %".format(*row.published)
    return [
        row.backbone,
        f"{row.task.title}, {row.image_size[0]} x {row.image_size[1]}",
        f"{cost.baseline.parameters / 1e6:.2f}",
        f"{cost.baseline.flops / 1e9:.2f}",
        f"+{cost.parameters_percent:.1f} %",
        f"+{cost.flops_percent:.1f} %",
        published,
        f"+{cost.rollout_percent:.1f} %",
        f"{cost.dcal_training.parameters / 1e6:.2f}",
        f"{cost.dcal_training.flops / 1e9:.1f}",
        f"{cost.training_ratio:.2f}",
    ]


HEADER = (
    "backbone", "data set, input", "M parameters", "GFLOP", "DCAL: parameters", "DCAL: FLOPs", "paper",
    "FLOPs with the rollout", "training: M parameters", "training: GFLOP", "training: FLOPs, x baseline",
)
NOTES = (
    "A multiplication and an addition are two FLOPs; of one image; matrix products and convolutions only, as "
    "`torch.utils.flop_counter` counts them. Backward is counted, the optimiser is not.",
    "Parameters at inference are those that the answer needs: with classifiers for categories (a second one for "
    "GLCA), without any for re-identification, which compares embeddings.",
    "The paper's figures are met without the rollout, so it does not count it. With the streaming rollout, the "
    "queries and keys of all blocks but the last are multiplied once more; `glca_readout=\"cls\"` and "
    "`inference_branches=(\"sa\",)` need none.",
    "Training is all branches, PWCA in all blocks, the rollout included; the paper reports 1.81 times the "
    "baseline's hours for DeiT-Tiny on CUB-200-2011.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("cost.md"))
    args = parser.parse_args()
    write_report(args.output, "What DCAL adds", markdown_table(HEADER, map(cells, ROWS)), bullets(NOTES))


if __name__ == "__main__":
    main()
