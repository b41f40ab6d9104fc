"""Measures what each switch of the trainer and the model buys, in real runs of `DCALTrainer` on DeiT-Tiny, 448 x 448.

    python recipes/benchmarks/bench_switches.py                              # writes recipes/benchmarks/switches.md
    python recipes/benchmarks/bench_switches.py --batch 2 --steps 1 --output small.md
    python recipes/benchmarks/bench_switches.py --device cuda --batch 64     # writes switches_cuda.md

Each case runs in a process of its own, all in turn, `--repeats` times; in each, one step to warm up (and to compile),
then `--steps` that are timed. The table holds medians over steps, then over processes. Weights and images are random.
"""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import torch
from harness import Figures, arguments, bullets, machine, markdown_table, measure, resident_memory, write_report
from steps import SHAPES, Setting, build, memory
from trainer_run import trainer_seconds


SHAPE = SHAPES["deit_tiny"]
TRAINING, INFERENCE = "none", "inference"


@dataclass(frozen=True)
class Switch:
    """A run that differs from one without switches: how it is told, the model (a key of `steps.DCAL`), arguments."""

    title: str
    model: str = "local-12"
    options: dict[str, object] = field(default_factory=dict)
    compared_to: str = TRAINING


SWITCHES = {
    TRAINING: Switch("none"),
    "accumulation": Switch(
        "`--gradient_accumulation_steps 2`, half the batch", options={"gradient_accumulation_steps": 2}
    ),
    "bf16": Switch("`--bf16`", options={"bf16": True}),
    "checkpointing": Switch("`--activation_checkpointing`", options={"activation_checkpointing": True}),
    "compile": Switch("`--torch_compile`", options={"torch_compile": True}),
    "bf16-compile": Switch("`--bf16 --torch_compile`", options={"bf16": True, "torch_compile": True}),
    "freeze": Switch("`--freeze_backbone`", options={"freeze_backbone": True}),
    "lora": Switch("`--lora_rank 8`", options={"lora_rank": 8}),
    "pwca-6": Switch("`num_pwca_blocks=6`", model="local-6"),
    "pwca-half": Switch("`--pwca_fraction 0.5`", options={"pwca_fraction": 0.5}),
    "similarity": Switch('`local_query_selection="similarity"`', model="similarity-12"),
    "cls": Switch('`glca_readout="cls"`', model="cls-12"),
    INFERENCE: Switch("none", compared_to=INFERENCE),
    "inference-sa": Switch('`inference_branches=("sa",)`', model="sa", compared_to=INFERENCE),
}


def run_case(name: str, batch: int, steps: int, device: str) -> Figures:
    """Seconds per image, and bytes above the imports, of one case in this process."""
    before = resident_memory()
    torch.manual_seed(0)
    switch, setting = SWITCHES[name], Setting(device)
    model = build(SHAPE, switch.model, setting)
    predicts = switch.compared_to == INFERENCE
    seconds = trainer_seconds(model, SHAPE, batch, setting, steps, predicts, **switch.options)
    return {"seconds": statistics.median(seconds) / batch, "bytes": memory(before, setting)}


def rows(results: dict[str, Figures], compared_to: str) -> list[list[str]]:
    """A line for each switch: its figures, and their ratios to those without."""
    plain = results[compared_to]
    return [
        [
            SWITCHES[name].title,
            f"{figures['seconds']:.4g}",
            f"**{figures['seconds'] / plain['seconds']:.2f}**",
            f"{figures['bytes'] / 1e6:,.0f}",
            f"**{figures['bytes'] / plain['bytes']:.2f}**",
        ]
        for name, figures in results.items()
        if SWITCHES[name].compared_to == compared_to
    ]


HEADER = ("switch", "seconds per image", "x none", "MB", "MB, x none")
NOTES = (
    "**x none**: against the first line, without a switch: all branches, readout `local`, T = 12, float32, sdpa.",
    "**seconds per image**: from one step's end to the next one's, with data of random tensors, decoded already, and "
    "no workers; what compiling takes is left out.",
    "**MB**: the peak of a process above its size after the imports; weights, gradients and optimiser are in it. "
    "On a GPU, the peak of what torch has allocated there.",
)


def main() -> None:
    here = Path(__file__)
    parser = arguments(__doc__, None, SWITCHES, repeats=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=SHAPE.batch, help="images per step")
    parser.add_argument("--steps", type=int, default=3, help="timed steps per process")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(args.case, args.batch, args.steps, args.device)))
        return
    options = {name: getattr(args, name) for name in ("device", "batch", "steps")}
    results = measure(__file__, dict.fromkeys(SWITCHES, options), args.repeats)
    write_report(
        args.output or here.with_name("switches_cuda.md" if args.device == "cuda" else "switches.md"),
        "What each switch buys",
        machine(("transformers",), args.device),
        f"{SHAPE.title}, batch {args.batch}; medians of {args.steps} steps in each of {args.repeats} processes per "
        "case.",
        "## Training",
        markdown_table(HEADER, rows(results, TRAINING)),
        "## Inference",
        markdown_table(HEADER, rows(results, INFERENCE)),
        bullets(NOTES),
    )


if __name__ == "__main__":
    main()
