"""The JSON file next to an ONNX file, which describes inputs, outputs and class names."""

from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor

from ..classes import class_names
from ..models import DCALForImageClassification
from ..retrieval.embedding import model_fingerprint
from ..version import __version__
from .graph import IMAGENET_MEAN, IMAGENET_STD, OnnxGraph


def metadata_path(path: Path) -> Path:
    """The path of the JSON file, where BoxMOT looks for it."""
    return path.with_name(f"{path.name}.metadata.json")


def check_tracker(name: str, size: tuple[int, int]) -> None:
    """Rejects file names from which BoxMOT would infer another input size or normalisation.

    Raises:
        ValueError: If the name is rejected; the message says how to rename the file.
    """
    if "clip" in name.lower():
        raise ValueError(f"{name}: older versions of BoxMOT normalise differently if a name has 'clip': rename it.")
    named_vehicle, is_vehicle = any(part in name for part in ("veri", "vehicleid")), size == (256, 256)
    if named_vehicle != is_vehicle:
        wrong = "pass 256 x 256 pixels if a name has 'veri', and 256 x 128 otherwise"
        raise ValueError(f"{name}: the model takes {size[0]} x {size[1]} pixels, but trackers {wrong}: rename it.")


def describe(graph: OnnxGraph, processor: BaseImageProcessor, model_name: str | None) -> dict[str, Any]:
    """The content of the metadata file."""
    model, config = graph.model, graph.model.config
    height, width = config.image_size
    spread = (graph.white - graph.black).flatten().tolist()
    is_classifier = isinstance(model, DCALForImageClassification)
    about = {
        "model": model_name,
        "model_id": model_fingerprint(model),
        "dcal_hf_version": __version__,
        "input": {
            "name": graph.input_name,
            "kind": graph.input_kind,
            "dtype": "uint8" if graph.input_kind == "uint8" else "float32",
            "shape": ["batch", *([height, width, 3] if graph.input_kind == "uint8" else [3, height, width])],
        },
        "outputs": graph.outputs,
        "labels": class_names(model) if is_classifier else None,
        # The graph has divided the logits of all branches together by it.
        "temperature": graph.temperature if is_classifier else None,
        "embedding_dim": len(config.inference_branches) * config.backbone_config.hidden_size,
        "normalisation": {
            "mean": [round(-value / s, 6) for value, s in zip(graph.black.flatten().tolist(), spread)],
            "std": [round(1 / s, 6) for s in spread],
            "in_graph": graph.input_kind == "uint8",
        },
        **resizing(processor, (height, width)),
    }
    if graph.input_kind == "tracker":
        about["normalisation"] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "in_graph": False}
        # Fields that BoxMOT reads.
        about |= {"schema_version": 1, "model_name": "dcal", "preprocess": "resize"}
        about |= {"model_kwargs_schema_version": 1, "model_kwargs": {"img_size": [height, width]}}
    return about


def resizing(processor: BaseImageProcessor, size: tuple[int, int]) -> dict[str, Any]:
    """The arguments of Pillow's `resize` and `crop` that do what the processor does; None if it keeps the aspect."""
    resized = dict(getattr(processor, "size", None) or {})
    if not {"height", "width"} <= set(resized):
        return {"resize": None, "resample": None, "crop": None}
    height, width = size if processor.do_center_crop else (resized["height"], resized["width"])
    # Truncated, as the image processors of transformers do.
    top, left = int((resized["height"] - height) / 2), int((resized["width"] - width) / 2)
    return {
        "resize": [resized["width"], resized["height"]],
        "resample": int(processor.resample),
        "crop": [left, top, left + width, top + height],
    }


__all__ = ["check_tracker", "describe", "metadata_path"]
