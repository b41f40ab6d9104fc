"""Measures time, memory and FLOPs of DCAL beside the plain ViT: training steps, inference, `Trainer` runs.

    python recipes/benchmarks/bench_model.py --repeats 5 --steps 2               # writes recipes/benchmarks/model.md
    python recipes/benchmarks/bench_model.py --report switches --shapes deit_tiny --steps 2      # writes switches.md
    python recipes/benchmarks/bench_model.py --report memory                     # writes memory.md: largest tensors
    python recipes/benchmarks/bench_model.py --shapes deit_tiny --batch 2 --steps 1 --output small.md
    python recipes/benchmarks/bench_model.py --models local-12 local-6-half      # these beside the plain ViT alone
    python recipes/benchmarks/bench_model.py --device cuda --dtype bfloat16      # writes model_cuda.md, batch 64
    python recipes/benchmarks/bench_model.py --device cuda --dtype bfloat16 --compile --attention flash_attention_2

Each case runs in a process of its own, all in turn, `--repeats` times; in each, one step to warm up, then `--steps`
that are timed, of inference, which is quick, five times as many. The tables hold medians over steps, then over
processes. Weights and images are random.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import steps
import torch
from flops import inference_flops, training_flops
from harness import Figures, resident_memory, run, table, timed
from steps import MODELS, PLAIN, SHAPES, Setting, Shape
from tensors import made_tensors

from dcal_hf.models.attention_dcal import ROLLOUT_CHUNK


# Steps of inference for each of training: they are short, and the more disturbed by whatever else the machine does.
STEPS_OF_INFERENCE = 5
# FLOPs are those of so many images, times the rest: of half of their pairs there is still one.
IMAGES_COUNTED = 4
TENSORS_SHOWN = 8


@dataclass(frozen=True)
class Case:
    """What a process measures, on one shape.

    Args:
        work: "train" or "infer", bare steps; "alternate", those of the plain model and of this one by turns;
            "tensors", the largest of a training step; "trainer" or "predict", steps of a `Trainer` run.
        model: A key of `MODELS`.
        options: Arguments of the `Trainer` run, or what replaces the setting of "tensors".
    """

    work: str
    model: str = "local-12"
    options: dict[str, object] = field(default_factory=dict)


def run_case(args: argparse.Namespace) -> Figures:
    """Seconds of a step and bytes above the imports, of a case in this process; of bare steps FLOPs, too."""
    before, (shape_name, case) = resident_memory(), CASES[args.case]
    torch.manual_seed(0)
    shape, setting = SHAPES[shape_name], Setting(args.device, args.dtype, args.compile, args.attention)
    batch = steps.batch_size(args, shape)
    if case.work == "alternate":
        return alternate(shape, case.model, batch, args.steps, setting)
    if case.work == "tensors":
        return largest_tensors(steps.make_step("train", shape, case.model, batch, replace(setting, **case.options)))
    if case.work in ("trainer", "predict"):
        model, predicts = steps.build(shape, case.model, setting), case.work == "predict"
        seconds = steps.trainer_seconds(model, shape, batch, setting, args.steps, predicts, **case.options)
        return {"seconds": statistics.median(seconds), "bytes": steps.memory(before, setting)}
    step = steps.make_step(case.work, shape, case.model, batch, setting)
    count = args.steps * (STEPS_OF_INFERENCE if case.work == "infer" else 1)
    seconds = [timed(step)[1] for _ in range(1 + count)][1:]
    figures = {"seconds": statistics.median(seconds), "bytes": steps.memory(before, setting)}
    few = min(batch, IMAGES_COUNTED)
    # torch knows the formulas of its own kernels only; those of flash attention make the same products.
    attention = "sdpa" if args.attention.startswith("flash") else args.attention
    counted = steps.make_step(case.work, shape, case.model, few, replace(setting, compile=False, attention=attention))
    return figures | {"flops": steps.counted_flops(counted) * batch / few}


def alternate(shape: Shape, model: str, batch: int, count: int, setting: Setting) -> Figures:
    """The plain model's step and DCAL's by turns."""
    plain, dcal = (steps.make_step("train", shape, name, batch, setting) for name in (PLAIN, model))
    times = [(timed(plain)[1], timed(dcal)[1]) for _ in range(1 + count)][1:]
    plain_seconds, seconds = map(statistics.median, zip(*times))
    return {"seconds": seconds, "plain_seconds": plain_seconds}


def largest_tensors(step: Callable[[], None]) -> Figures:
    """Bytes by operation and shape, of the second step: the first one also sets up the optimiser."""
    step()
    made = sorted(made_tensors(step), key=lambda tensor: tensor.size, reverse=True)
    return {f"{tensor.operation} {' x '.join(map(str, tensor.shape))}": tensor.size for tensor in made[:TENSORS_SHOWN]}


# Functions from the figures of a table's cases, and from shape and batch, to its rows.
Results = list[tuple[str, Case, Figures]]


def beside_plain(results: Results, shape: Shape, batch: int) -> list[dict[str, str]]:
    """Each figure, and its ratio to the plain model's, which is the first."""

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
            "GFLOP counted": f"{figures['flops'] / 1e9:.1f}" if "flops" in figures else "",
            "MB": f"{figures['bytes'] / 1e6:,.0f}",
            "MB, x plain": f"**{figures['bytes'] / plain['bytes']:.2f}**",
        })
    return rows


def by_turns(results: Results, shape: Shape, batch: int) -> list[dict[str, str]]:
    """What a benchmark in one process would have read."""
    return [
        {
            "": title,
            "seconds": f"{figures['seconds']:.4g}",
            "seconds, plain": f"{figures['plain_seconds']:.4g}",
            "x plain": f"{figures['seconds'] / figures['plain_seconds']:.2f}",
        }
        for title, _, figures in results
    ]


def beside_none(results: Results, shape: Shape, batch: int) -> list[dict[str, str]]:
    """The figures of each switch, and their ratios to those without, which are the first."""
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


def beside_a_map(results: Results, shape: Shape, batch: int) -> list[dict[str, str]]:
    """The largest tensors below what none of them may be: a map, float32, of all tokens."""
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
} | {"`num_pwca_blocks=6`": Case("trainer", "local-6"), '`glca_readout="cls"`': Case("trainer", "cls-12")}
INFERENCE_SWITCHES = {"none": Case("predict"), '`inference_branches=("sa",)`': Case("predict", "sa")}
LOCAL = ("local-12", "local-6", "local-12-half", "local-6-half")
Tables = dict[str, tuple[Callable[[Results, Shape, int], list[dict[str, str]]], dict[str, Case]]]
# Of each report, the title, how its figures are measured, and its tables: by heading, their rows and cases.
REPORTS: dict[str, tuple[str, str, Tables]] = {
    "model": (
        "DCAL beside the plain ViT",
        "{dtype}, {attention}, compile={compile}; medians of {steps} steps, of inference five times as many, in each "
        "of {repeats} processes per case.",
        {
            "Training step": (beside_plain, titled("train", PLAIN, *LOCAL, "similarity-12", "cls-12")),
            # Inference has no PWCA; SA alone is a way of inference, not of training.
            "Inference": (beside_plain, titled("infer", PLAIN, "local-12", "similarity-12", "cls-12", "sa")),
            "Training step in a `Trainer` run": (beside_plain, titled("trainer", PLAIN, "local-12")),
            "Training steps by turns in one process": (by_turns, titled("alternate", "local-12")),
        },
    ),
    "switches": (
        "What each switch buys",
        "{dtype}, {attention}, compile={compile}; medians of {steps} steps in each of {repeats} processes per case.",
        {
            "Training": (beside_none, SWITCHES),
            "Inference": (beside_none, INFERENCE_SWITCHES),
        },
    ),
    "memory": (
        "The largest tensors of a training step",
        "{dtype}; the second step, of forward, backward and fused AdamW.",
        {name: (beside_a_map, {"": Case("tensors", options={"attention": name})}) for name in ("sdpa", "eager")},
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
    parser.add_argument("--report", choices=REPORTS, default="model")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="beside the plain ViT")
    parser.add_argument("--steps", type=int, default=3, help="timed steps per process")
    parser.add_argument("--batch", type=int, help="default: 4 and 8 on the CPU, 64 on a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile, plain models too")
    parser.add_argument("--attention", default="sdpa", help="attn_implementation, of the plain model too")


def chosen(args: argparse.Namespace) -> list[str]:
    return [
        name for name, (shape, case) in CASES.items()
        if name.startswith(f"{args.report}/") and shape in args.shapes and case.model in (PLAIN, *args.models)
    ]


def report(args: argparse.Namespace, results: dict[str, Figures]) -> list[str]:
    title, how, tables = REPORTS[args.report]
    blocks = [title, how.format_map(vars(args))]
    for name in args.shapes:
        shape, batch = SHAPES[name], steps.batch_size(args, SHAPES[name])
        blocks.append(f"## {shape.title}, batch {batch}")
        for heading, (rows, cases) in tables.items():
            names = {title: f"{args.report}/{name}/{heading}/{title}" for title in cases}
            measured = [(title, cases[title], results[key]) for title, key in names.items() if key in results]
            if measured:
                blocks += [f"### {heading}", table(rows(measured, shape, batch))]
    return blocks


def main() -> None:
    run(
        __doc__, "model", CASES, run_case, report, packages=("transformers",), add_arguments=add_arguments,
        chosen=chosen,
    )


if __name__ == "__main__":
    main()
