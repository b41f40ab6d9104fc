# /// script
# dependencies = ["dcal_hf[export]"]
# ///
"""Writes a DCAL checkpoint as an ONNX file, for any batch size, and compares it with torch.

    python recipes/export.py --model_name_or_path out/birds --output birds.onnx --images photographs

`birds.onnx.metadata.json` describes inputs, outputs and class names. `--calibrated` applies the temperature that
recipes/run_fgvc.py has fitted and saved beside the checkpoint. With `--input uint8` the graph takes resized RGB
images and normalises them:

    python recipes/export.py --model_name_or_path out/birds --output birds.onnx --input uint8 --int8 \
        --outputs probabilities sa_probabilities glca_probabilities

Embedding for a multi-object tracker (BoxMOT), of 256 x 128 pixels, or 256 x 256 with "veri" in the file name:

    python recipes/export.py --model_name_or_path out/reid --output persons.onnx --input tracker
"""

if __name__ == "__main__":
    from cli import run_script

    # Imports this file as a module, unless only its help is asked for, because the imports below take seconds.
    raise SystemExit(run_script(__file__))

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from arguments import HubArguments, parse_arguments
from common import set_up_logging
from loading import load_checkpoint
from PIL import Image
from predict import find_images
from temperature import load_temperature

from dcal_hf.data import open_image
from dcal_hf.errors import counted
from dcal_hf.export import OnnxExport, export_onnx


# The largest number of photographs to compare outputs on; more would only take time.
MAX_IMAGES = 64


@dataclass
class ExportArguments:
    """The file to write, its inputs and outputs, and the comparison with torch."""

    output: str = field(metadata={"help": "File to write, ending in .onnx."})
    input: Literal["pixel_values", "uint8", "tracker"] = field(
        default="pixel_values",
        metadata={
            "help": "pixel_values: as the image processor makes them; uint8: resized RGB images, height x width x 3, "
            "normalised in the graph; tracker: normalised by ImageNet's mean and std, as BoxMOT passes them."
        },
    )
    outputs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Any of embeddings, rollout and, for classifiers, probabilities, logits, sa_probabilities, "
            "sa_logits, glca_probabilities, glca_logits; by default probabilities, otherwise embeddings."
        },
    )
    calibrated: bool = field(
        default=False,
        metadata={
            "help": "In the graph, divide the joint logits by the temperature that recipes/run_fgvc.py fitted."
        },
    )
    images: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Photographs or folders of them to compare torch and onnxruntime on, {MAX_IMAGES} at most; by "
            "default noise."
        },
    )
    int8: bool = field(default=False, metadata={"help": "Also write <name>.int8.onnx, with weights of 8 bits."})
    tolerance: float = field(
        default=1e-4,
        metadata={"help": "Largest allowed difference, relative to the largest value of an output, at least 1."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace existing files."})


ARGUMENTS = (ExportArguments, HubArguments)


def main() -> None:
    args, hub_args = parse_arguments(ARGUMENTS)
    set_up_logging(logging.WARNING)
    images = None if args.images is None else open_images(args.images)
    model, processor = load_checkpoint(hub_args, classifies=True, dtype=torch.float32)
    report(
        export_onnx(
            model,
            processor,
            args.output,
            outputs=args.outputs,
            input_kind=args.input,
            temperature=load_temperature(model, hub_args) if args.calibrated else 1.0,
            images=images,
            int8=args.int8,
            tolerance=args.tolerance,
            overwrite=args.overwrite,
            model_name=hub_args.model_name_or_path,
        )
    )


def open_images(given: list[str]) -> list[Image.Image]:
    """The given photographs and those in the given folders; `MAX_IMAGES` of them, evenly spaced, if there are more."""
    paths = find_images(given)
    if not paths:
        raise ValueError(f"--images: there is no photograph in {', '.join(given)}.")
    return [open_image(path) for path in paths[::-(-len(paths) // MAX_IMAGES)]]


def report(export: OnnxExport) -> None:
    """Prints the files, and the differences from torch."""
    about = export.metadata
    compared = counted(export.num_images, "photograph" if about["compared"]["photographs"] else "noise image")
    shape = " x ".join(map(str, about["input"]["shape"]))
    print(
        f"{export.files[0]}: {size_of(export.files[0])}, from {about['input']['name']} ({shape}, "
        f"{about['input']['dtype']}) to {', '.join(about['outputs'])}"
    )
    print(f"Largest difference between onnxruntime and torch on {compared}:")
    for batch_size, differences in export.differences.items():
        listed = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
        print(f"  batch of {batch_size}: {listed}")
    if export.int8_agreement is None:
        return
    print(f"{export.files[1]}: {size_of(export.files[1])}; int8 and torch on {compared}:")
    for name, near in export.int8_agreement.items():
        same = f", the same class {100 * near['same']:.1f} %" if name.endswith(("probabilities", "logits")) else ""
        print(f"  {name}: cosine {near['cosine']:.4f}, largest difference {near['largest_difference']:.1e}{same}")


def size_of(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
