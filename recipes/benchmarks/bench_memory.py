"""Lists the largest tensors of a training step of DCAL, beside the attention maps that none of them may be.

    python recipes/benchmarks/bench_memory.py                                    # writes recipes/benchmarks/memory.md
    python recipes/benchmarks/bench_memory.py --shapes deit_tiny --batch 2 --output small.md
    python recipes/benchmarks/bench_memory.py --device cuda --dtype bfloat16     # writes memory_cuda.md, batch 64

On the CPU every operation's results are looked at as they are made. On a GPU torch's allocator records what it gives
out; what a kernel takes for itself is then in the list, and shapes are not known. All three branches, the rollout
included; eager attention, which does make maps, for comparison.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Figures, arguments, beside, bullets, machine, markdown_table, measure, parse, write_report
from steps import (
    SHAPES,
    Setting,
    Shape,
    add_arguments,
    batches,
    build,
    dcal_config,
    pairs,
    random_batch,
    training_step,
)
from tensors import made_tensors

from dcal_hf.models.attention_dcal import ROLLOUT_CHUNK


MODEL = "local-12"
ATTENTIONS = ("sdpa", "eager")
CASES = {f"{shape}/{attention}": (shape, attention) for shape in SHAPES for attention in ATTENTIONS}
SHOWN = 8


def largest_made(work: Callable[[], None]) -> Figures:
    """Bytes of the largest tensors by operation and shape."""
    made = sorted(made_tensors(work), key=lambda tensor: tensor.size, reverse=True)
    return {f"{tensor.operation} {' x '.join(map(str, tensor.shape))}": tensor.size for tensor in made[:SHOWN]}


def largest_allocated(work: Callable[[], None]) -> Figures:
    """Bytes of the largest allocations on the GPU, by the line of Python that asked for them."""
    torch.cuda.memory._record_memory_history(stacks="python")
    work()
    torch.cuda.synchronize()
    events = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
    torch.cuda.memory._record_memory_history(enabled=None)
    allocations: Figures = {}
    for event in events:
        if event["action"] == "alloc":
            place = place_of(event["frames"])
            allocations[place] = max(event["size"], allocations.get(place, 0))
    return dict(sorted(allocations.items(), key=lambda item: item[1], reverse=True)[:SHOWN])


def place_of(frames: list[dict[str, object]]) -> str:
    """The innermost line of Python of an allocation; backward has none."""
    if not frames:
        return "backward"
    return f"{Path(str(frames[0]['filename'])).name}:{frames[0]['line']} {frames[0]['name']}"


def run_case(args: argparse.Namespace) -> Figures:
    """The largest tensors of the second step: the first one also sets up the optimiser."""
    torch.manual_seed(0)
    shape_name, attention = CASES[args.case]
    shape, setting = SHAPES[shape_name], Setting(args.device, args.dtype, attention=attention)
    batch = batches(args, SHAPES)[shape_name]
    model = build(shape, MODEL, setting)
    step = training_step(model, random_batch(shape, batch, setting) | pairs(model, batch), setting)
    step()
    return (largest_allocated if args.device == "cuda" else largest_made)(step)


def num_tokens(shape: Shape) -> int:
    rows, columns = dcal_config(shape, MODEL).grid
    return rows * columns + 1


def section(shape_name: str, batch: int, results: dict[str, Figures]) -> list[str]:
    """One shape's maps that must not be, and what there is."""
    shape = SHAPES[shape_name]
    tokens = num_tokens(shape)
    one_map = 4 * batch * shape.heads * tokens**2 / 1e6
    chunk = 4 * shape.heads * ROLLOUT_CHUNK * tokens / 1e6
    blocks = [
        f"## {shape.title}, batch {batch}",
        f"A float32 map of {tokens} x {tokens} tokens, of all {shape.heads} heads and {batch} images, would be "
        f"{one_map:,.1f} MB, and twice that for PWCA; a chunk of {ROLLOUT_CHUNK} rows of the rollout is {chunk:,.1f} "
        "MB per image.",
    ]
    for attention in ATTENTIONS:
        rows = [
            (place, f"{size / 1e6:,.1f}", f"{size / 1e6 / one_map:.2f}")
            for place, size in results[f"{shape_name}/{attention}"].items()
        ]
        blocks += [f"### {attention}", markdown_table(("largest tensors", "MB", "x a map"), rows)]
    return blocks


NOTES = (
    "A tensor that is made several times, in every block say, is listed once.",
    "On a CPU the rollout takes an image at a time, on a GPU all of them at once.",
)


def main() -> None:
    parser = arguments(__doc__, None, CASES, repeats=1)
    add_arguments(parser, SHAPES)
    args = parse(parser, run_case)
    images = batches(args, SHAPES)
    results = measure({name: () for name, (shape, _) in CASES.items() if shape in args.shapes})
    write_report(
        args.output or beside(__file__, "memory", args.device),
        "The largest tensors of a training step",
        machine(("transformers",), args.device),
        f"DCAL, readout `local`, T = 12, {args.dtype}; forward, backward and fused AdamW.",
        *[block for name in args.shapes for block in section(name, images[name], results)],
        bullets(NOTES),
    )


if __name__ == "__main__":
    main()
