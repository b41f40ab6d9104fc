"""Measures how many images per second are decoded and transformed, beside how many a training step eats.

    python recipes/benchmarks/bench_data.py --speeds 1.2 0.9            # writes recipes/benchmarks/data.md
    python recipes/benchmarks/bench_data.py --speeds 1.2 0.9 --count 32 --output small.md

The images are JPEG files of 500 x 375 smooth noise, in a temporary folder. Each case runs in a process of its own:
one pass over the images to warm up, then three that are timed, with a batch of 16 and the workers of torch's
DataLoader. What the model eats is what `bench_model.py` measured: its images per second in training.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
from harness import Figures, arguments, bullets, machine, markdown_table, measure, parse, write_report
from PIL import Image
from steps import SHAPES
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor

from dcal_hf.data import open_image
from dcal_hf.transforms import (
    EvalTransform,
    ReIDTrainTransform,
    TrainTransform,
    fine_grained_processor,
    reid_processor,
)


WIDTH, HEIGHT, QUALITY = 500, 375, 90
BATCH, WORKERS, PASSES = 16, (0, 2), 3
Transform = Callable[[dict[str, list]], dict[str, list]]


def decode(batch: dict[str, list]) -> dict[str, list]:
    """No transform: what reading the files takes alone."""
    return {"pixel_values": [open_image(image).size for image in batch["image"]]}


def fine_grained() -> ViTImageProcessor:
    return fine_grained_processor(ViTImageProcessor(), SHAPES["deit_tiny"].image_size)


def reid() -> ViTImageProcessor:
    return reid_processor(ViTImageProcessor(), SHAPES["vit_base"].image_size)


# Label, the model that eats it, and how to make it.
TRANSFORMS: dict[str, tuple[str, str, Callable[[], Transform]]] = {
    "decode": ("decoding alone", "deit_tiny", lambda: decode),
    "train": ("`TrainTransform`", "deit_tiny", lambda: TrainTransform(fine_grained())),
    "train_augmented": (
        "`TrainTransform`, RandAugment, colour jitter, random erasing",
        "deit_tiny",
        lambda: TrainTransform(fine_grained(), "rand-m9-mstd0.5-inc1", color_jitter=0.3, random_erasing=0.25),
    ),
    "eval": ("`EvalTransform`", "deit_tiny", lambda: EvalTransform(fine_grained())),
    "reid": (
        "`ReIDTrainTransform` without random erasing", "vit_base", lambda: ReIDTrainTransform(reid(), random_erasing=0)
    ),
    "reid_augmented": ("`ReIDTrainTransform`", "vit_base", lambda: ReIDTrainTransform(reid())),
}
CASES = {f"{name}/{workers}": (name, workers) for name in TRANSFORMS for workers in WORKERS}


def photograph(seed: int) -> Image.Image:
    """Colours that change slowly, and a little grain: a file of a photograph's size."""
    numbers = np.random.default_rng(seed)
    coarse = Image.fromarray(numbers.integers(0, 256, (HEIGHT // 15, WIDTH // 15, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = numbers.normal(0, 6, (HEIGHT, WIDTH, 1))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def make_images(folder: Path, count: int) -> int:
    """Writes the files; returns their mean size in bytes."""
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        photograph(number).save(path, quality=QUALITY)
    return sum(path.stat().st_size for path in paths) // count


def run_case(args: argparse.Namespace) -> Figures:
    """Images per second through one transform with so many workers."""
    transform_name, workers = CASES[args.case]
    paths = [str(path) for path in sorted(args.folder.glob("*.jpg"))]
    columns = {"image": paths, "label": [0] * len(paths)}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))
    dataset = dataset.with_transform(TRANSFORMS[transform_name][2]())
    loader = DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=workers > 0)
    seconds = [timed_pass(loader) for _ in range(1 + PASSES)][1:]
    return {"images_per_second": len(paths) / statistics.median(seconds)}


def timed_pass(loader: DataLoader) -> float:
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def row(name: str, results: dict[str, Figures], speeds: dict[str, float]) -> list[str]:
    label, shape, _ = TRANSFORMS[name]
    made = [results[f"{name}/{workers}"]["images_per_second"] for workers in WORKERS]
    ratios = [f"{speed / speeds[shape]:,.0f}" for speed in made]
    cells = [f"{speed:,.0f}" for speed in made]
    return [label, SHAPES[shape].title, *[cell for pair in zip(cells, ratios) for cell in pair]]


def main() -> None:
    parser = arguments(__doc__, Path(__file__).with_name("data.md"), CASES, repeats=1)
    parser.add_argument("--count", type=int, default=128, help="number of images")
    parser.add_argument("--folder", type=Path, help="where the images are")
    parser.add_argument(
        "--speeds", nargs=len(SHAPES), type=float, required=True,
        help=f"images per second that a training step on {', '.join(SHAPES)} eats",
    )
    args = parse(parser, run_case)
    speeds = dict(zip(SHAPES, args.speeds))
    with tempfile.TemporaryDirectory() as folder:
        file_bytes = make_images(Path(folder), args.count)
        results = measure(dict.fromkeys(CASES, ["--folder", folder]), args.repeats)
    header = ["", "input"]
    header += [part for workers in WORKERS for part in (f"images/s, {workers} workers", "x what the model eats")]
    eats = ", ".join(f"{SHAPES[name].title}: {speed:.2f} images/s" for name, speed in speeds.items())
    write_report(
        args.output,
        "Decoding and transforming images",
        f"{args.count} JPEG files of {WIDTH} x {HEIGHT} smooth noise, {file_bytes / 1e3:.0f} kB each; batch {BATCH}; "
        f"medians of {PASSES} passes in each of {args.repeats} processes per case.",
        machine(("torchvision", "PIL")),
        f"A DCAL training step (float32, T = 12, this machine) eats, {eats}.",
        markdown_table(header, [row(name, results, speeds) for name in TRANSFORMS]),
        bullets(
            [
                "0 workers: the training process itself makes the images, and the model waits for them.",
                "2 workers: beside the training process, which then has fewer cores; here they are all the workers'.",
            ]
        ),
    )


if __name__ == "__main__":
    main()
