"""Loads the checkpoints that users name: one set of rules and error messages for all commands."""

from pathlib import Path
from typing import Any

import torch
from arguments import HubArguments
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
from dcal_hf.models.loading_dcal import naming


def check_source(name: str) -> None:
    """Distinguishes a mistyped path from the ID of a model on the Hub.

    Raises:
        FileNotFoundError: If `name` is a path that does not exist. It is a path, not an ID, if it starts like one, has
            more than two parts, or its parent folder exists.
    """
    path = Path(name).expanduser()
    is_path = name.startswith((".", "/", "~")) or len(path.parts) > 2 or len(path.parts) > 1 and path.parent.is_dir()
    if is_path and not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {name}; check the path.")


def read_config(name: str, **hub_kwargs: Any) -> PreTrainedConfig:
    """Reads the configuration of a DCAL checkpoint or a plain encoder; see [`check_source`].

    Raises:
        ValueError: If it is damaged or of an unknown model type.
    """
    check_source(name)
    with naming(name, "config.json"):
        return AutoConfig.from_pretrained(name, **hub_kwargs)


def read_processor(name: str, **hub_kwargs: Any) -> BaseImageProcessor:
    """Reads the image processor of a checkpoint; see [`check_source`].

    Raises:
        ValueError: If it is damaged.
    """
    check_source(name)
    with naming(name, "preprocessor_config.json"):
        return AutoImageProcessor.from_pretrained(name, **hub_kwargs)


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
    name, config = args.model_name_or_path, read_config(args.model_name_or_path, **args.hub_kwargs)
    if config.model_type != "dcal":
        raise ValueError(
            f"{name} is a {config.model_type} checkpoint: give a DCAL one, such as the output_dir of `dcal fgvc` "
            "or `dcal reid`."
        )
    has_classifiers = classifies and "DCALForImageClassification" in (config.architectures or ())
    auto_class = AutoModelForImageClassification if has_classifiers else AutoModel
    with naming(name):
        model = auto_class.from_pretrained(name, **args.hub_kwargs, **model_kwargs)
    return model, read_processor(name, **args.hub_kwargs)


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
