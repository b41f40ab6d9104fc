"""Measures how many images per second are decoded and transformed, compared with the speed of training.

    python recipes/benchmarks/bench_data.py --speeds 1.11 0.92          # writes recipes/benchmarks/data.md
    python recipes/benchmarks/bench_data.py --speeds 1.11 0.92 --count 32 --output small.md

The images are JPEG files of 500 x 375 smooth noise, in a temporary folder. Each case runs in its own process: one
warm-up pass over the images, then three timed passes, with a batch size of 16 and the workers of torch's DataLoader.
`--speeds` are the images per second in training that `bench_model.py` measured.
"""

import argparse
import statistics
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import numpy as np
from harness import Figures, median_seconds, run, table
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


def decode(batch: dict[str, list]) -> dict[str, list]:
    """Only decodes the images."""
    return {"pixel_values": [open_image(image).size for image in batch["image"]]}


FGVC = fine_grained_processor(ViTImageProcessor(), SHAPES["deit_tiny"].image_size)
REID = reid_processor(ViTImageProcessor(), SHAPES["vit_base"].image_size)
AUGMENTED = {"auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.3, "random_erasing": 0.25}
# By label: the model to compare with, and the transform.
TRANSFORMS: dict[str, tuple[str, Callable[[dict[str, list]], dict[str, list]]]] = {
    "decoding only": ("deit_tiny", decode),
    "`TrainTransform`": ("deit_tiny", TrainTransform(FGVC)),
    "`TrainTransform`, RandAugment, colour jitter, random erasing": ("deit_tiny", TrainTransform(FGVC, **AUGMENTED)),
    "`EvalTransform`": ("deit_tiny", EvalTransform(FGVC)),
    "`ReIDTrainTransform` without random erasing": ("vit_base", ReIDTrainTransform(REID, random_erasing=0)),
    "`ReIDTrainTransform`": ("vit_base", ReIDTrainTransform(REID)),
}
CASES = {f"{label}/{workers}": (label, workers) for label in TRANSFORMS for workers in WORKERS}


def photograph(seed: int) -> Image.Image:
    """Smooth colours with noise, which give a file of the size of a photograph."""
    numbers = np.random.default_rng(seed)
    coarse = Image.fromarray(numbers.integers(0, 256, (HEIGHT // 15, WIDTH // 15, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = numbers.normal(0, 6, (HEIGHT, WIDTH, 1))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def make_images(folder: Path, count: int) -> list[Path]:
    """Writes the files, unless another case has written them."""
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            photograph(number).save(path, quality=QUALITY)
    return paths


def run_case(args: argparse.Namespace) -> Figures:
    """Images per second with a transform and a number of workers, and the mean file size."""
    label, workers = CASES[args.case]
    paths = make_images(args.folder, args.count)
    columns = {"image": list(map(str, paths)), "label": [0] * len(paths)}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))
    dataset = dataset.with_transform(TRANSFORMS[label][1])
    loader = DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=workers > 0)
    seconds = median_seconds(partial(deque, loader, maxlen=0), PASSES)
    size = statistics.mean(path.stat().st_size for path in paths)
    return {"images_per_second": len(paths) / seconds, "file_bytes": size}


def row(label: str, results: dict[str, Figures], speeds: dict[str, float]) -> dict[str, str]:
    shape, _ = TRANSFORMS[label]
    cells = {"": label, "input": SHAPES[shape].title}
    for workers in WORKERS:
        speed = results[f"{label}/{workers}"]["images_per_second"]
        cells[f"images/s, {workers} workers"] = f"{speed:,.0f}"
        cells[f"x training speed, {workers} workers"] = f"{speed / speeds[shape]:,.0f}"
    return cells


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=128, help="number of images")
    parser.add_argument(
        "--speeds", nargs=len(SHAPES), type=float, required=True,
        help=f"images per second of a training step on {', '.join(SHAPES)}",
    )


def report(args: argparse.Namespace, results: dict[str, Figures]) -> list[str]:
    speeds = dict(zip(SHAPES, args.speeds))
    listed = ", ".join(f"{SHAPES[name].title}: {speed:.2f} images/s" for name, speed in speeds.items())
    file_bytes = next(iter(results.values()))["file_bytes"]
    return [
        "Decoding and transforming images",
        f"{args.count} JPEG files of {WIDTH} x {HEIGHT} smooth noise, {file_bytes / 1e3:.0f} kB each; batch {BATCH}; "
        f"medians of {PASSES} passes in each of {args.repeats} processes per case.",
        f"A DCAL training step (float32, T = 12, this machine) consumes, for {listed}.",
        table(row(label, results, speeds) for label in TRANSFORMS),
    ]


def main() -> None:
    run(__doc__, "data", CASES, run_case, report, packages=("torchvision", "PIL"), add_arguments=add_arguments)


if __name__ == "__main__":
    main()
