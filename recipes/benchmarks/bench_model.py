"""Measures time, memory and FLOPs of DCAL beside the plain ViT: training steps, inference, a real Trainer run.

    python recipes/benchmarks/bench_model.py                                     # writes recipes/benchmarks/model.md
    python recipes/benchmarks/bench_model.py --shapes deit_tiny --batch 2 --steps 1 --output small.md
    python recipes/benchmarks/bench_model.py --models local-12 local-6-half      # these beside the plain ViT alone
    python recipes/benchmarks/bench_model.py --device cuda --dtype bfloat16      # writes model_cuda.md, batch 64
    python recipes/benchmarks/bench_model.py --device cuda --dtype bfloat16 --compile --attention flash_attention_2
    python recipes/benchmarks/bench_model.py --switches                          # writes switches.md: DeiT-Tiny alone

Each case runs in a process of its own, all in turn, `--repeats` times; in each, one step to warm up, then `--steps`
that are timed, of inference, which is quick, five times as many. The table holds medians over steps, then over
processes. Weights and images are random.
"""

import argparse
import statistics
import time
from dataclasses import dataclass, field

import torch
from flops import inference_flops, training_flops
from harness import (
    Figures,
    arguments,
    beside,
    bullets,
    machine,
    markdown_table,
    measure,
    parse,
    resident_memory,
    write_report,
)
from steps import (
    PWCA_FRACTION,
    SHAPES,
    STEPS,
    Setting,
    Shape,
    Step,
    add_arguments,
    batches,
    build,
    counted_flops,
    dcal_config,
    memory,
    pairs,
    random_batch,
    training_step,
)
from trainer_run import trainer_seconds


PLAIN = "transformers"
MODELS = {
    PLAIN: "plain ViT, transformers",
    "timm": "plain ViT, timm",
    "local-12": "DCAL, readout `local`, T = 12",
    "local-6": "DCAL, readout `local`, T = 6",
    "local-12-half": "DCAL, readout `local`, T = 12, `--pwca_fraction 0.5`",
    "local-6-half": "DCAL, readout `local`, T = 6, `--pwca_fraction 0.5`",
    "local-0": "DCAL, readout `local`, T = 0",
    "cls-12": "DCAL, readout `cls`, T = 12",
    "cls-0": "DCAL, readout `cls`, T = 0",
    "similarity-12": "DCAL, readout `local`, selection `similarity`",
    "sa": "DCAL, SA only",
}
# Inference has no PWCA, whatever T was; SA alone is a way of inference, not of training.
WORK = {
    "train": (
        PLAIN,
        "timm",
        "local-12",
        "local-6",
        "local-12-half",
        "local-6-half",
        "local-0",
        "similarity-12",
        "cls-12",
        "cls-0",
    ),
    "infer": (PLAIN, "timm", "local-12", "similarity-12", "cls-12", "sa"),
    "trainer": (PLAIN, "local-12"),
    "alternate": ("local-12",),
}
# FLOPs are those of so many images, times the rest: of half of their pairs there is still one.
IMAGES_COUNTED = 4
# For each of training: they are short, and the more disturbed by whatever else the machine does.
STEPS_OF_INFERENCE = 5
TITLES = {
    "train": "Training step",
    "infer": "Inference",
    "trainer": "Training step in a `Trainer` run",
}
CASES = {f"{shape}/{work}/{model}": (shape, work, model) for shape in SHAPES for work in WORK for model in WORK[work]}
SWITCHED, TRAINING, INFERENCE = "deit_tiny", "none", "inference"


@dataclass(frozen=True)
class Switch:
    """A `Trainer` run that differs from one without switches: its title, model (a key of `steps.DCAL`), arguments."""

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


def timed(step: Step, setting: Setting) -> float:
    start = time.perf_counter()
    step()
    setting.synchronize()
    return time.perf_counter() - start


def setting_of(args: argparse.Namespace) -> Setting:
    return Setting(args.device, args.dtype, args.compile, args.attention)


def run_case(args: argparse.Namespace) -> Figures:
    """Seconds of a step (with a switch: per image), bytes above the imports, and FLOPs, of a case in this process."""
    before = resident_memory()
    torch.manual_seed(0)
    setting, steps = setting_of(args), args.steps
    shape_name, work, model_name = CASES.get(args.case, (SWITCHED, "switch", args.case))
    shape, batch = SHAPES[shape_name], batches(args, SHAPES)[shape_name]
    if work == "switch":
        switch = SWITCHES[args.case]
        predicts = switch.compared_to == INFERENCE
        model = build(shape, switch.model, setting)
        seconds = trainer_seconds(model, shape, batch, setting, steps, predicts, **switch.options)
        return {"seconds": statistics.median(seconds) / batch, "bytes": memory(before, setting)}
    if work == "alternate":
        return alternate(shape, model_name, batch, steps, setting)
    model = build(shape, model_name, setting)
    if work == "trainer":
        seconds = trainer_seconds(model, shape, batch, setting, steps)
        return {"seconds": statistics.median(seconds), "bytes": memory(before, setting)}
    inputs = random_batch(shape, batch, setting)
    inputs |= pairs(model, batch, PWCA_FRACTION.get(model_name, 1.0))
    step = STEPS[work](model, inputs, setting)
    if work == "infer":
        steps *= STEPS_OF_INFERENCE
    seconds = [timed(step, setting) for _ in range(steps + 1)][1:]
    figures = {"seconds": statistics.median(seconds), "bytes": memory(before, setting)}
    few = min(batch, IMAGES_COUNTED)
    counted = random_batch(shape, few, setting) | pairs(model, few, PWCA_FRACTION.get(model_name, 1.0))
    return figures | {"flops": counted_flops(work, model, counted, setting) * batch / few}


def alternate(shape: Shape, model_name: str, batch: int, steps: int, setting: Setting) -> Figures:
    """The plain model's step and DCAL's by turns."""
    inputs = random_batch(shape, batch, setting)
    models = [build(shape, name, setting) for name in (PLAIN, model_name)]
    plain, dcal = (training_step(model, inputs | pairs(model, batch), setting) for model in models)
    times = [(timed(plain, setting), timed(dcal, setting)) for _ in range(steps + 1)][1:]
    plain_seconds, seconds = map(statistics.median, zip(*times))
    return {"seconds": seconds, "plain_seconds": plain_seconds}


def needed_flops(shape: Shape, work: str, model: str) -> int:
    """The floor, of one image."""
    config = dcal_config(shape, model)
    if work == "infer":
        return inference_flops(config)
    return training_flops(config, PWCA_FRACTION.get(model, 1.0))


def row(shape: Shape, work: str, model: str, batch: int, figures: Figures, plain: Figures) -> list[str]:
    """A line of the table: each figure, and its ratio to the plain model's."""
    needed, plain_needed = (batch * needed_flops(shape, work, name) for name in (model, PLAIN))
    ratio, fastest = (figures[key] / plain[key] for key in ("seconds", "fastest"))
    floor = needed / plain_needed
    counted = f"{figures['flops'] / 1e9:.1f}" if "flops" in figures else ""
    memory_ratio = figures["bytes"] / plain["bytes"]
    return [
        MODELS[model],
        f"{figures['seconds']:.4g}",
        f"**{ratio:.2f}**",
        f"{fastest:.2f}",
        f"{floor:.2f}",
        f"{ratio / floor:.2f}",
        f"{needed / 1e9:.1f}",
        counted,
        f"{figures['bytes'] / 1e6:,.0f}",
        f"**{memory_ratio:.2f}**",
    ]


HEADER = (
    "",
    "seconds",
    "x plain",
    "x plain, fastest",
    "floor, x plain",
    "time / floor",
    "GFLOP needed",
    "GFLOP counted",
    "MB",
    "MB, x plain",
)


def section(shape_name: str, results: dict[str, Figures], batch: int) -> list[str]:
    """One shape's tables, of the models that were measured."""
    shape = SHAPES[shape_name]
    blocks = [f"## {shape.title}, batch {batch}"]
    for work, title in TITLES.items():
        measured = {model: results.get(f"{shape_name}/{work}/{model}") for model in WORK[work]}
        rows = [
            row(shape, work, model, batch, figures, measured[PLAIN])
            for model, figures in measured.items()
            if figures is not None
        ]
        blocks += [f"### {title}", markdown_table(HEADER, rows)]
    alternated = [model for model in WORK["alternate"] if f"{shape_name}/alternate/{model}" in results]
    return blocks + [alternation(shape_name, model, results) for model in alternated]


def alternation(shape_name: str, model: str, results: dict[str, Figures]) -> str:
    """What a benchmark in one process would have read."""
    mixed = results[f"{shape_name}/alternate/{model}"]
    alone = [results[f"{shape_name}/train/{name}"]["seconds"] for name in (model, PLAIN)]
    return (
        f"Where training steps of the plain model and of DCAL (`local`, T = 12) alternate in one process, they take "
        f"{mixed['plain_seconds']:.4g} and {mixed['seconds']:.4g} s, "
        f"{mixed['seconds'] / mixed['plain_seconds']:.2f}x (each alone: {alone[0] / alone[1]:.2f}x)."
    )


NOTES = (
    "**x plain**: against transformers' plain ViT with the same attention, under the same heading. **fastest**: the "
    "fastest process of each, of those that the medians are of.",
    "**floor**: the FLOPs of the matrix products that cannot be left out (`flops.py`: SA, PWCA with twice the keys, "
    "GLCA, rollout), against the plain model's. **time / floor**: how far the time is above it, where 1.00 is as "
    "many FLOPs per second as the plain model's.",
    "**GFLOP counted**: by `FlopCounterMode`, on four images; a fused attention computes its scores once more in "
    "backward, which the floor does not.",
    "**MB**: the peak of a process above its size after the imports; weights, gradients and optimiser are in it. "
    "On a GPU, the peak of what torch has allocated there.",
    "A training step is forward, loss, backward and fused AdamW; the loss is of 200 classes. In a `Trainer` run it is "
    "the time from one step's end to the next one's, with data of random tensors, decoded already, and no workers.",
)


def switch_rows(results: dict[str, Figures], compared_to: str) -> list[list[str]]:
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


SWITCH_HEADER = ("switch", "seconds per image", "x none", "MB", "MB, x none")
SWITCH_NOTES = (
    "**x none**: against the first line, without a switch: all branches, readout `local`, T = 12, float32, sdpa.",
    "**seconds per image**: from one step's end to the next one's, with data of random tensors, decoded already, and "
    "no workers; what compiling takes is left out.",
    NOTES[3],
)


def report_switches(args: argparse.Namespace) -> None:
    results = measure(dict.fromkeys(SWITCHES, ()), args.repeats)
    write_report(
        args.output or beside(__file__, "switches", args.device),
        "What each switch buys",
        machine(("transformers",), args.device),
        f"{SHAPES[SWITCHED].title}, batch {batches(args, SHAPES)[SWITCHED]}; medians of {args.steps} steps in each of "
        f"{args.repeats} processes per case.",
        "## Training",
        markdown_table(SWITCH_HEADER, switch_rows(results, TRAINING)),
        "## Inference",
        markdown_table(SWITCH_HEADER, switch_rows(results, INFERENCE)),
        bullets(SWITCH_NOTES),
    )


def main() -> None:
    parser = arguments(__doc__, None, [*CASES, *SWITCHES], repeats=1)
    add_arguments(parser, SHAPES)
    parser.add_argument("--compile", action="store_true", help="torch.compile, plain models too")
    parser.add_argument("--attention", default="sdpa", help="attn_implementation, of the plain model too")
    parser.add_argument("--steps", type=int, default=3, help="timed steps per process")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="beside the plain ViT")
    parser.add_argument("--switches", action="store_true", help="of the trainer and the model, instead of models")
    args = parse(parser, run_case)
    if args.switches:
        report_switches(args)
        return
    images, models = batches(args, SHAPES), {PLAIN, *args.models}
    cases = {name: () for name, (shape, _, model) in CASES.items() if shape in args.shapes and model in models}
    results = measure(cases, args.repeats)
    how = f"{args.dtype}, {args.attention}, {'compiled' if args.compile else 'not compiled'}"
    write_report(
        args.output or beside(__file__, "model", args.device),
        "DCAL beside the plain ViT",
        machine(("transformers", "timm"), args.device),
        f"{how}; medians of {args.steps} steps ({STEPS_OF_INFERENCE * args.steps} of inference) in each of "
        f"{args.repeats} processes per case.",
        *[block for name in args.shapes for block in section(name, results, images[name])],
        bullets(NOTES),
    )


if __name__ == "__main__":
    main()
