"""Writes DCAL models as ONNX files."""

import itertools
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from ..errors import first_line
from ..files import write_atomically
from ..models import DCALForImageClassification
from ..models.modeling_dcal import DCALPreTrainedModel
from .comparison import agreement, check_parity, prepare, run_batches
from .graph import InputKind, OnnxGraph, choose_outputs, measure_normalisation
from .metadata import check_tracker, describe, metadata_path


PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
# The size limit of a protocol buffer, and so of an ONNX file.
MAX_BYTES = 2**31 - 1


@dataclass(frozen=True)
class OnnxExport:
    """The files that [`export_onnx`] wrote, and their differences from torch.

    Args:
        files (`list` of `Path`): The ONNX file and, with `int8`, the int8 file.
        differences (`dict`): The largest absolute difference to torch of each output, by batch size.
        int8_agreement (`dict`, *optional*): Agreement of int8 with torch by output; see [`agreement`].
        num_images (`int`): Number of images that were compared.
        metadata (`dict`): The content of the metadata file.
    """

    files: list[Path]
    differences: dict[int, dict[str, float]]
    int8_agreement: dict[str, dict[str, float]] | None
    num_images: int
    metadata: dict[str, Any]


def export_onnx(
    model: DCALPreTrainedModel,
    image_processor: BaseImageProcessor,
    path: str | os.PathLike,
    *,
    outputs: Sequence[str] | None = None,
    input_kind: InputKind = "pixel_values",
    temperature: float = 1.0,
    images: Sequence[Image.Image] | None = None,
    int8: bool = False,
    tolerance: float = 1e-4,
    overwrite: bool = False,
    model_name: str | None = None,
) -> OnnxExport:
    """Writes a model as an ONNX file with a dynamic batch, and `<file>.metadata.json` beside it. A file appears only
    after onnxruntime gave the same outputs as torch, at batches of 1, 2 and 5.

    Args:
        model (`DCALPreTrainedModel`): In float32. Dropout and PWCA do not run.
        image_processor (`BaseImageProcessor`): The processor saved with the model.
        path (`str` or `os.PathLike`): The file to write, `*.onnx`. With `int8`, also `*.int8.onnx`.
        outputs (`Sequence[str]`, *optional*): Outputs of the graph, in this order; see [`available_outputs`].
            Defaults to `probabilities` of a classifier, otherwise, and for trackers, to `embeddings`.
        input_kind (`str`):
            `"pixel_values"`: float32 of shape (B, 3, height, width), as the image processor returns them.
            `"uint8"`: RGB images of shape (B, height, width, 3), already resized; the graph normalises them.
            `"tracker"`: float32 of shape (B, 3, height, width) normalised by the mean and the standard deviation of
            ImageNet, as BoxMOT passes them; the graph converts them to those of the image processor.
        temperature (`float`): Divides the joint logits only; see [`~dcal_hf.metrics.fit_temperature`].
        images (`Sequence` of `PIL.Image.Image`, *optional*): Photographs to compare on; defaults to noise images.
        int8 (`bool`): Also write the graph with weights of 8 bits (dynamic quantisation of onnxruntime).
        tolerance (`float`): Largest allowed difference of an output, relative to its largest value, at least 1.
        overwrite (`bool`), model_name (`str`, *optional*): Replace existing files; display name for the metadata.

    Raises:
        ImportError: If a package of the extra `export` is missing.
        FileExistsError: If a file exists and `overwrite` is off.
        ValueError: If the model cannot be exported or an argument is invalid, or if onnxruntime and torch differ.
    """
    check_packages()
    path = Path(path)
    files = [path, path.with_suffix(".int8.onnx")] if int8 else [path]
    check_files(files, overwrite)
    graph, outputs = build_graph(model, image_processor, outputs, input_kind, temperature, path.name)
    pixel_values, num_images = prepare(image_processor, images, tuple(model.config.image_size))
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = [Path(folder, file.name) for file in files]
        save_graph(graph, pixel_values[:2], written[0])
        if int8:
            quantise(*written)
        expected, found = run_batches(graph, pixel_values, written)
        differences = check_parity(expected, found[0], outputs, tolerance)
        int8_agreement = agreement(expected, found[1], outputs) if int8 else None
        about = describe(graph, image_processor, model_name)
        compared = {"images": num_images, "photographs": images is not None}
        results = [{"largest_difference": differences}, {"agreement": int8_agreement}]
        abouts = [{**about, "int8": file is not path, "compared": compared | one} for file, one in zip(files, results)]
        move(written, files, abouts)
    return OnnxExport(files, differences, int8_agreement, num_images, abouts[0])


def build_graph(
    model: DCALPreTrainedModel,
    image_processor: BaseImageProcessor,
    outputs: Sequence[str] | None,
    input_kind: InputKind,
    temperature: float,
    file_name: str,
) -> tuple[OnnxGraph, list[str]]:
    """Checks that the model can be exported, and returns its graph and the names of the outputs."""
    check_model(model)
    if temperature != 1 and not isinstance(model, DCALForImageClassification):
        raise ValueError("A temperature scales the logits of a classifier, and the model is none.")
    outputs = choose_outputs(model, outputs, input_kind)
    image_size = tuple(model.config.image_size)
    if input_kind == "tracker":
        check_tracker(file_name, image_size)
    black, white = measure_normalisation(image_processor, image_size)
    return OnnxGraph(model.eval(), outputs, input_kind, black, white, temperature), outputs


def move(written: Sequence[Path], files: Sequence[Path], abouts: Sequence[dict[str, Any]]) -> None:
    """Renames complete files to their final names, each after its metadata."""
    for about, temporary, file in zip(abouts, written, files, strict=True):
        write_atomically(metadata_path(file), json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        os.replace(temporary, file)


def check_packages() -> None:
    """Raises an `ImportError` that names the missing packages of the extra `export`."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(f"Exporting needs {', '.join(missing)}: pip install dcal_hf[export]")


def check_files(files: Sequence[Path], overwrite: bool) -> None:
    """Raises an error if a file name is wrong, or a file exists and must not be replaced."""
    if files[0].suffix != ".onnx":
        raise ValueError(f"{files[0]} must end in .onnx.")
    for file in itertools.chain.from_iterable((file, metadata_path(file)) for file in files):
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists: choose another name, or allow to overwrite it.")


def check_model(model: DCALPreTrainedModel) -> None:
    """
    Raises:
        ValueError: If the model cannot be exported; the message says why.
    """
    config = model.config
    if model.dtype != torch.float32:
        raise ValueError(f"The model is in {model.dtype}: load it with dtype=torch.float32 to export it.")
    if "glca" in config.inference_branches and config.local_query_selection == "random":
        raise ValueError(
            "A model with local_query_selection='random' draws other patches in each call, so no graph gives its "
            "outputs: load it with another selection, or with inference_branches=('sa',)."
        )
    num_bytes = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())
    if num_bytes > MAX_BYTES:
        raise ValueError(f"The model has {num_bytes / 1e9:.1f} GB of weights, and an ONNX file at most 2.1 GB.")


@contextmanager
def exporting(model: DCALPreTrainedModel) -> Iterator[None]:
    """Runs the exporter with eager attention and without its warnings.

    A mask makes the layout of fused attention differ between the trace and its decomposition, and eager attention
    becomes plain matrix products, which every runtime has.
    """
    chosen, level = model.config._attn_implementation, logging.root.manager.disable
    model.set_attn_implementation("eager")
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        model.set_attn_implementation(chosen)


def save_graph(graph: OnnxGraph, pixel_values: Tensor, path: Path) -> None:
    """Writes the graph; the number of images stays free.

    Raises:
        ValueError: If the encoder cannot be exported; the message names it.
    """
    example = graph.pixels(pixel_values.to(graph.model.device))
    with exporting(graph.model):
        try:
            program = torch.onnx.export(
                graph,
                (example,),
                input_names=[graph.input_name],
                output_names=graph.outputs,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            encoder = graph.model.config.backbone_config
            name = getattr(encoder, "architecture", None) or encoder.model_type
            cause = first_line(error.__cause__ or error)
            raise ValueError(f"torch.onnx cannot export the encoder '{name}': {cause}") from error
    # They hold a traceback each, with paths on this computer.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(path, external_data=False)


def quantise(path: Path, target: Path) -> None:
    """Writes a graph whose linear layers have weights of 8 bits, one scale per channel."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    # Of torch 2.11, some shapes between layers are wrong. onnxruntime infers them again.
    del model.graph.value_info[:]
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # Unsigned: on processors without VNNI, signed weights saturate.
        kinds = {"weight_type": QuantType.QUInt8, "op_types_to_quantize": ["MatMul", "Gemm"]}
        quantize_dynamic(model, target, per_channel=True, **kinds)
    finally:
        logging.disable(level)


__all__ = ["OnnxExport", "export_onnx"]
