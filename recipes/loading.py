"""Loads the checkpoints that users name: one set of rules and error messages for all commands."""

from pathlib import Path
from typing import Any

import torch
from arguments import HubArguments
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import cached_file

from dcal_hf import DCALForImageClassification
from dcal_hf.errors import one_line
from dcal_hf.models.loading_dcal import naming


PROCESSOR_FILE = "preprocessor_config.json"
# In pixels, far above the input size of any encoder: larger images would fill the memory.
MAX_SIDE = 10_000


def check_source(name: str) -> None:
    """Distinguishes a mistyped path from the ID of a model on the Hub.

    Raises:
        FileNotFoundError: If `name` is a path that does not exist. It is a path, not an ID, if it starts like one, has
            more than two parts, or its parent folder exists.
    """
    path = Path(name)
    is_path = name.startswith((".", "/", "~")) or len(path.parts) > 2 or len(path.parts) > 1 and path.parent.is_dir()
    if is_path and not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {name}; check the path.")


def read_config(name: str, **hub_kwargs: Any) -> PreTrainedConfig:
    """Reads the configuration of a DCAL checkpoint or a plain encoder; see [`check_source`].

    Raises:
        OSError: If it can neither be found nor downloaded.
        ValueError: If it is damaged or of an unknown model type.
    """
    check_source(name)
    try:
        with naming(name, "config.json"):
            return AutoConfig.from_pretrained(name, **hub_kwargs)
    except OSError as error:
        reason = one_line(error)
        raise OSError(reason if name in reason else f"{name} cannot be loaded: {reason}") from error


def read_processor(name: str, **hub_kwargs: Any) -> BaseImageProcessor:
    """Reads the image processor of a checkpoint; see [`check_source`].

    Raises:
        ValueError: If it is damaged.
    """
    check_source(name)
    with naming(name, PROCESSOR_FILE):
        return AutoImageProcessor.from_pretrained(name, **hub_kwargs)


def read_own_processor(name: str, config: PreTrainedConfig, **hub_kwargs: Any) -> BaseImageProcessor:
    """Reads the image processor of a DCAL checkpoint, and tries it on a black image of the model's size.

    Args:
        config (`PreTrainedConfig`): The configuration of the checkpoint.

    Raises:
        ValueError: If the processor is damaged, or does not make inputs of the model.
    """
    processor = read_processor(name, **hub_kwargs)
    (height, width), options = config.image_size, ("size", "crop_size", "pad_size")
    with naming(name, PROCESSOR_FILE):
        for option in options:
            sides = dict(getattr(processor, option, None) or {})
            if any(isinstance(side, int) and side > MAX_SIDE for side in sides.values()):
                raise ValueError(f"{option} is {sides}, and images have at most {MAX_SIDE:,} x {MAX_SIDE:,} pixels")
        pixels = processor(Image.new("RGB", (width, height)), return_tensors="pt")["pixel_values"]
        if pixels.shape[1:] != (3, height, width) or not pixels.isfinite().all():
            raise ValueError(
                f"its images have the shape {tuple(pixels.shape[1:])} and must have {(3, height, width)}, with finite "
                "numbers"
            )
    return processor


def load_checkpoint(
    args: HubArguments, classifies: bool = False, **model_kwargs: Any
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Loads a DCAL checkpoint and its image processor, to embed images.

    Args:
        classifies (`bool`): Whether to load a classifier with its classifiers.
        model_kwargs: Arguments of `from_pretrained`, such as `dtype`.

    Raises:
        FileNotFoundError: If it is a path that does not exist.
        ValueError: If it is no DCAL checkpoint, or damaged.
    """
    name = args.model_name_or_path
    config = read_config(name, return_dict=True, **args.hub_kwargs)
    if config.model_type != "dcal":
        raise ValueError(
            f"{name} is a {config.model_type} checkpoint: give a DCAL one, such as the output_dir of `dcal fgvc` "
            "or `dcal reid`."
        )
    has_classifiers = classifies and "DCALForImageClassification" in (config.architectures or ())
    auto_class = AutoModelForImageClassification if has_classifiers else AutoModel
    processor = read_own_processor(name, config, **args.hub_kwargs)
    with naming(name):
        model = auto_class.from_pretrained(name, config=config, **args.hub_kwargs, **model_kwargs)
    return model, processor


def load_classifier(args: HubArguments) -> tuple[DCALForImageClassification, BaseImageProcessor]:
    """Loads a DCAL classifier on the [`default_device`]; see [`load_checkpoint`].

    Raises:
        ValueError: If the checkpoint has no classifiers. transformers would initialise them.
    """
    model, processor = load_checkpoint(args, classifies=True)
    if not isinstance(model, DCALForImageClassification):
        raise ValueError(
            f"{args.model_name_or_path} is a DCAL checkpoint without classifiers: give one of `dcal fgvc`."
        )
    return model.to(default_device()), processor


def find_calibration(args: HubArguments, file: str, advice: str) -> Path:
    """The path of a file that was calibrated for a checkpoint, in its folder or on the Hub.

    Raises:
        FileNotFoundError: If there is none, with the advice how to calibrate.
    """
    try:
        return Path(cached_file(args.model_name_or_path, file, **args.hub_kwargs))
    except OSError as error:
        raise FileNotFoundError(f"{args.model_name_or_path} has no {file}: {advice}.") from error


def default_device() -> torch.device:
    """The accelerator if there is one, otherwise the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
