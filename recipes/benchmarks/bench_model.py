"""Measures time and memory of DCAL and of the plain ViT: training steps, inference and `Trainer` runs.

    python recipes/benchmarks/bench_model.py --repeats 5 --steps 2               # writes recipes/benchmarks/model.md
    python recipes/benchmarks/bench_model.py --report switches --shapes deit_tiny --steps 2      # writes switches.md
    python recipes/benchmarks/bench_model.py --report memory                     # writes memory.md: largest tensors
    python recipes/benchmarks/bench_model.py --shapes deit_tiny --batch 2 --steps 1 --output small.md
    python recipes/benchmarks/bench_model.py --device cuda --dtype bfloat16      # writes model_cuda.md, batch 64
    python recipes/benchmarks/bench_model.py --device cuda --dtype bfloat16 --compile --attention flash_attention_2

Each case runs in its own process, `--repeats` times: one warm-up step, then `--steps` timed steps (five times as many
for inference, which is fast). The cases alternate. The tables contain medians over the steps, then over the processes.
Weights and images are random.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import steps
import torch
from flops import inference_flops, training_flops
from harness import Figures, median_seconds, resident_memory, run, table
from steps import MODELS, PLAIN, SHAPES, Setting, Shape
from tensors import made_tensors

from dcal_hf.models.attention_dcal import ROLLOUT_CHUNK


# Inference steps per training step: they are short, so other work on the machine disturbs them more.
STEPS_OF_INFERENCE = 5
TENSORS_SHOWN = 8


@dataclass(frozen=True)
class Case:
    """A measurement on one shape, made in its own process.

    Args:
        work: "train" or "infer": single steps; "trainer" or "predict": steps of a `Trainer` run; "tensors": the
            largest tensors of a training step.
        model: A key of `MODELS`.
        options: Arguments of the `Trainer` run, or fields of `Setting` for "tensors".
    """

    work: str
    model: str = "dcal"
    options: dict[str, object] = field(default_factory=dict)


def run_case(args: argparse.Namespace) -> Figures:
    """Runs a case in this process: seconds per step and bytes above the imports, or the largest tensors."""
    before, (shape_name, case) = resident_memory(), CASES[args.case]
    torch.manual_seed(0)
    shape, setting = SHAPES[shape_name], Setting(args.device, args.dtype, args.compile, args.attention)
    batch = steps.batch_size(args, shape)
    if case.work == "tensors":
        return largest_tensors(steps.make_step("train", shape, case.model, batch, replace(setting, **case.options)))
    if case.work in ("trainer", "predict"):
        model, predicts = steps.build(shape, case.model, setting), case.work == "predict"
        seconds = steps.trainer_seconds(model, shape, batch, setting, args.steps, predicts, **case.options)
    else:
        step = steps.make_step(case.work, shape, case.model, batch, setting)
        seconds = median_seconds(step, args.steps * (STEPS_OF_INFERENCE if case.work == "infer" else 1))
    return {"seconds": seconds, "bytes": steps.memory(before, setting)}


def largest_tensors(step: Callable[[], None]) -> Figures:
    """Bytes by operation and shape in the second step, because the first one also initialises the optimiser."""
    step()
    made = sorted(made_tensors(step), key=lambda tensor: tensor.size, reverse=True)
    return {f"{tensor.operation} {' x '.join(map(str, tensor.shape))}": tensor.size for tensor in made[:TENSORS_SHOWN]}


# A function that builds the rows of a table takes the results of its cases, the shape and the batch size.
Results = list[tuple[str, Case, Figures]]


def rows_relative_to_plain(results: Results, shape: Shape, batch: int) -> list[dict[str, str]]:
    """The results, and their ratios to the plain model, which is the first case."""

    def needed(case: Case) -> float:
        config = steps.dcal_config(shape, case.model)
        if case.work == "infer":
            return batch * inference_flops(config)
        return batch * training_flops(config, MODELS[case.model].pwca_fraction)

    (_, plain_case, plain), *_ = results
    rows = []
    for title, case, figures in results:
        ratio, floor = figures["seconds"] / plain["seconds"], needed(case) / needed(plain_case)
        rows.append({
            "": title,
            "seconds": f"{figures['seconds']:.4g}",
            "x plain": f"**{ratio:.2f}**",
            "x plain, fastest": f"{figures['fastest'] / plain['fastest']:.2f}",
            "floor, x plain": f"{floor:.2f}",
            "time / floor": f"{ratio / floor:.2f}",
            "GFLOP needed": f"{needed(case) / 1e9:.1f}",
            "MB": f"{figures['bytes'] / 1e6:,.0f}",
            "MB, x plain": f"**{figures['bytes'] / plain['bytes']:.2f}**",
        })
    return rows


def rows_relative_to_none(results: Results, shape: Shape, batch: int) -> list[dict[str, str]]:
    """The results of each option, and their ratios to the first case, which has none."""
    (_, _, none), *_ = results
    return [
        {
            "switch": title,
            "seconds per image": f"{figures['seconds'] / batch:.4g}",
            "x none": f"**{figures['seconds'] / none['seconds']:.2f}**",
            "MB": f"{figures['bytes'] / 1e6:,.0f}",
            "MB, x none": f"**{figures['bytes'] / none['bytes']:.2f}**",
        }
        for title, _, figures in results
    ]


def rows_of_tensors(results: Results, shape: Shape, batch: int) -> list[dict[str, str]]:
    """The largest tensors, compared with the size of a float32 attention map of all tokens."""
    tokens = math.prod(steps.dcal_config(shape, PLAIN).grid) + 1
    one_map = 4 * batch * shape.heads * tokens**2
    sizes = {
        f"(a map of {tokens} x {tokens} tokens, {shape.heads} heads and {batch} images)": one_map,
        f"(a chunk of {ROLLOUT_CHUNK} rows of the rollout, one image)": 4 * shape.heads * ROLLOUT_CHUNK * tokens,
    }
    ((_, _, largest),) = results
    return [
        {"largest tensors": name, "MB": f"{size / 1e6:,.1f}", "x a map": f"{size / one_map:.2f}"}
        for name, size in (sizes | largest).items()
    ]


def titled(work: str, *models: str) -> dict[str, Case]:
    return {MODELS[model].title: Case(work, model) for model in models}


SWITCHES = {
    title: Case("trainer", options=options)
    for title, options in {
        "none": {},
        "`--gradient_accumulation_steps 2`, half the batch": {"gradient_accumulation_steps": 2},
        "`--bf16`": {"bf16": True},
        "`--activation_checkpointing`": {"activation_checkpointing": True},
        "`--torch_compile`": {"torch_compile": True},
        "`--bf16 --torch_compile`": {"bf16": True, "torch_compile": True},
        "`--freeze_backbone`": {"freeze_backbone": True},
        "`--lora_rank 8`": {"lora_rank": 8},
    }.items()
} | {"`num_pwca_blocks=6`": Case("trainer", "t6"), '`glca_readout="local"`': Case("trainer", "local")}
INFERENCE_SWITCHES = {"none": Case("predict"), '`inference_branches=("sa",)`': Case("predict", "sa")}
Tables = dict[str, tuple[Callable[[Results, Shape, int], list[dict[str, str]]], dict[str, Case]]]
# For each report: the title, a description of the measurement, and its tables (rows and cases by heading).
REPORTS: dict[str, tuple[str, str, Tables]] = {
    "model": (
        "DCAL compared with the plain ViT",
        "{dtype}, {attention}, compile={compile}; medians of {steps} training steps, or five times as many inference "
        "steps, in each of {repeats} processes per case.",
        {
            # `sa` is an option of inference, where PWCA does not run.
            "Training step": (rows_relative_to_plain, titled("train", *(name for name in MODELS if name != "sa"))),
            "Inference": (rows_relative_to_plain, titled("infer", PLAIN, "dcal", "local", "similarity", "sa")),
            "Training step in a `Trainer` run": (rows_relative_to_plain, titled("trainer", PLAIN, "dcal", "local")),
        },
    ),
    "switches": (
        "Effect of each option",
        "{dtype}, {attention}, compile={compile}; medians of {steps} steps in each of {repeats} processes per case.",
        {
            "Training": (rows_relative_to_none, SWITCHES),
            "Inference": (rows_relative_to_none, INFERENCE_SWITCHES),
        },
    ),
    "memory": (
        "The largest tensors of a training step",
        "{dtype}; the second step, of forward, backward and fused AdamW.",
        {name: (rows_of_tensors, {"": Case("tensors", "local", {"attention": name})}) for name in ("sdpa", "eager")},
    ),
}
CASES = {
    f"{report}/{shape}/{heading}/{title}": (shape, case)
    for report, (_, _, tables) in REPORTS.items()
    for shape in SHAPES
    for heading, (_, cases) in tables.items()
    for title, case in cases.items()
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", choices=REPORTS, default="model", help="name of the report")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: both")
    parser.add_argument("--steps", type=int, default=3, help="timed steps per process")
    parser.add_argument("--batch", type=int, help="default: 4 and 8 on the CPU, 64 on a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of autocast")
    parser.add_argument("--compile", action="store_true", help="use torch.compile, also for the plain ViT")
    parser.add_argument("--attention", default="sdpa", help="attn_implementation, also of the plain ViT")


def chosen(args: argparse.Namespace) -> list[str]:
    return [name for name, (shape, _) in CASES.items() if name.startswith(f"{args.report}/") and shape in args.shapes]


def report(args: argparse.Namespace, results: dict[str, Figures]) -> list[str]:
    title, how, tables = REPORTS[args.report]
    blocks = [title, how.format_map(vars(args))]
    for name in args.shapes:
        shape, batch = SHAPES[name], steps.batch_size(args, SHAPES[name])
        blocks.append(f"## {shape.title}, batch {batch}")
        for heading, (rows, cases) in tables.items():
            prefix = f"{args.report}/{name}/{heading}/"
            measured = [(title, case, results[prefix + title]) for title, case in cases.items()]
            blocks += [f"### {heading}", table(rows(measured, shape, batch))]
    return blocks


def main() -> None:
    run(
        __doc__, "model", CASES, run_case, report, packages=("transformers",), add_arguments=add_arguments,
        chosen=chosen,
    )


if __name__ == "__main__":
    main()
