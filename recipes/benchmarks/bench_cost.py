"""Counts what DCAL adds to each backbone of the paper: parameters and FLOPs, at inference and in training.

    python recipes/benchmarks/bench_cost.py                                      # writes recipes/benchmarks/cost.md

FLOPs are counted on fake tensors, so nothing is computed.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from harness import Figures, run, table
from steps import vit
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, SwinConfig, TimmWrapperConfig
from transformers.initialization import no_init_weights

from dcal_hf import DCALForImageClassification, DCALForReID, DCALModel
from dcal_hf.models import DCALPreTrainedModel


VITS = {
    "DeiT-Tiny": partial(vit, 192, 3), "DeiT-Small": partial(vit, 384, 6), "DeiT-Base, ViT-Base": partial(vit, 768, 12)
}
SWIN = "Swin-T, PWCA alone"
BACKBONES: dict[str, Callable[[], PreTrainedConfig]] = {
    **VITS,
    "R50-ViT-Base": partial(TimmWrapperConfig, architecture="vit_base_r50_s16_224"),
    "CaiT-XS24": partial(TimmWrapperConfig, architecture="cait_xs24_384"),
    SWIN: SwinConfig,
}


@dataclass(frozen=True)
class Task:
    """A data set of the paper, and how to build its models.

    At inference re-identification needs no classifier: it compares embeddings.
    """

    num_labels: int
    image_size: tuple[int, int]
    backbones: tuple[str, ...]
    trained: type[DCALPreTrainedModel]
    inferred: type[DCALPreTrainedModel]
    fields: dict[str, object]


# With the readout of the selected patches, which costs more than that of CLS and is what the paper counts.
LOCAL = {"glca_readout": "local"}
CUB = {"local_query_ratio": 0.1, **LOCAL}
REID = {**DCALForReID.config_defaults, **LOCAL}
TASKS = {
    "CUB-200-2011": Task(
        200, (448, 448), tuple(BACKBONES), DCALForImageClassification, DCALForImageClassification, CUB
    ),
    "VeRi-776": Task(576, (256, 256), tuple(VITS), DCALForReID, DCALModel, REID),
    "MSMT17": Task(1041, (256, 128), (*VITS, SWIN), DCALForReID, DCALModel, REID),
}
CASES = {f"{backbone}/{title}": (backbone, title) for title, task in TASKS.items() for backbone in task.backbones}
# The paper's additional parameters and FLOPs, in per cent.
PUBLISHED = {("DeiT-Tiny", "CUB-200-2011"): (9, 2), ("DeiT-Base, ViT-Base", "VeRi-776"): (8, 3)}
# Random selection costs nothing, in place of a rollout that is not counted.
PLAIN, WITHOUT_ROLLOUT = {"branches": ("sa",)}, {"local_query_selection": "random"}


def build(
    backbone: str, task: Task, model_class: type[DCALPreTrainedModel], **fields: object
) -> DCALPreTrainedModel:
    own = {"branches": ("sa", "pwca")} if backbone == SWIN else {}
    # Eager attention matches the paper's formulas; fused attention computes its scores twice in backward.
    fields = {**task.fields, "attn_implementation": "eager", **own, **fields}
    with no_init_weights():
        return model_class.from_backbone(
            BACKBONES[backbone](), task.image_size, num_labels=task.num_labels, **fields
        )


def inference_cost(backbone: str, task: Task, **fields: object) -> tuple[int, int]:
    """Parameters without those of the loss, and FLOPs per image, at inference."""
    model = build(backbone, task, task.inferred, **fields).eval()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *task.image_size))
    used = [p for name, p in model.named_parameters() if not name.startswith("loss_weights")]
    return sum(p.numel() for p in used), counter.get_total_flops()


def training_cost(backbone: str, task: Task, **fields: object) -> tuple[int, int]:
    """Parameters, and FLOPs per image of a training step on two images."""
    model = build(backbone, task, task.trained, **fields).train()
    pair = {"pairs": torch.tensor([[0, 1]])} if model.config.uses_pwca else {}
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        labels = torch.zeros(2, dtype=torch.int64)
        model(torch.empty(2, 3, *task.image_size), labels=labels, **pair).loss.backward()
    return model.num_parameters(), counter.get_total_flops() // 2


def run_case(args: argparse.Namespace) -> Figures:
    backbone, title = CASES[args.case]
    costs = {
        "baseline": inference_cost(backbone, TASKS[title], **PLAIN),
        "dcal": inference_cost(backbone, TASKS[title], **WITHOUT_ROLLOUT),
        "rollout": inference_cost(backbone, TASKS[title]),
        "baseline_training": training_cost(backbone, TASKS[title], **PLAIN),
        "training": training_cost(backbone, TASKS[title]),
    }
    return {f"{name}_{unit}": n for name, both in costs.items() for unit, n in zip(("parameters", "flops"), both)}


def row(case: str, figures: Figures) -> dict[str, str]:
    backbone, title = CASES[case]

    def more(name: str, unit: str) -> str:
        return f"+{100 * (figures[f'{name}_{unit}'] / figures[f'baseline_{unit}'] - 1):.1f} %"

    return {
        "backbone": backbone,
        "data set, input": "{}, {} x {}".format(title, *TASKS[title].image_size),
        "M parameters": f"{figures['baseline_parameters'] / 1e6:.2f}",
        "GFLOP": f"{figures['baseline_flops'] / 1e9:.2f}",
        "DCAL: parameters": more("dcal", "parameters"),
        "DCAL: FLOPs": more("dcal", "flops"),
        "paper": "+{} %, +{} %".format(*PUBLISHED[CASES[case]]) if CASES[case] in PUBLISHED else "",
        "FLOPs with the rollout": more("rollout", "flops"),
        "training: M parameters": f"{figures['training_parameters'] / 1e6:.2f}",
        "training: GFLOP": f"{figures['training_flops'] / 1e9:.1f}",
        "training: FLOPs, x baseline": f"{figures['training_flops'] / figures['baseline_training_flops']:.2f}",
    }


def report(args: argparse.Namespace, results: dict[str, Figures]) -> list[str]:
    return ["Costs of DCAL", table(row(case, figures) for case, figures in results.items())]


def main() -> None:
    run(__doc__, "cost", CASES, run_case, report, packages=("transformers", "timm"))


if __name__ == "__main__":
    main()
