"""The model that a recipe trains or evaluates: a DCAL checkpoint, or a plain encoder that DCAL is added to."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from arguments import ModelArguments
from huggingface_hub.errors import StrictDataclassError
from loading import read_config, read_own_processor, read_processor
from transformers import AutoConfig, BaseImageProcessor, PreTrainedConfig, ViTImageProcessor

from dcal_hf import DCALConfig
from dcal_hf.errors import counted, reason_of
from dcal_hf.models import DCALPreTrainedModel
from dcal_hf.training import class_names, has_class_names, name_classes, set_classes


logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=DCALPreTrainedModel)


def load_model(
    model_class: type[Model],
    prepare_processor: Callable[[BaseImageProcessor, tuple[int, int]], BaseImageProcessor],
    model_args: ModelArguments,
    names: list[str] | None,
    trains: bool = True,
) -> tuple[Model, BaseImageProcessor]:
    """Loads a DCAL checkpoint, or adds DCAL to a plain encoder, together with the image processor.

    Args:
        model_class: The class of the model.
        prepare_processor: Converts the image processor of a plain encoder to that of the recipe, given the input size.
        model_args (`ModelArguments`): The checkpoint or encoder, and the DCAL options.
        names (list of `str`, *optional*): The classes of the data set; defaults to those of the checkpoint.
        trains (`bool`): Whether the model is trained, so that classes missing from a checkpoint are added to it.

    Raises:
        ValueError: If `--image_size` is not that of a DCAL checkpoint, or its classes do not fit, see [`fit_classes`];
            or if there is a single class for a plain encoder.
    """
    labels = {}
    if names is not None:
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    source, hub_kwargs = model_args.model_name_or_path, model_args.hub_kwargs
    if source is None:
        backbone, processor = encoder_config(model_args.backbone_fields), ViTImageProcessor()
    else:
        backbone, config = source, read_config(source, **hub_kwargs)
        processor_name = model_args.image_processor_name or source
        if isinstance(config, DCALConfig):
            check_image_size(model_args, config)
            processor = read_own_processor(processor_name, config, **hub_kwargs)
            model = model_class.from_pretrained(source, **model_args.dcal_kwargs, **hub_kwargs)
            if names is not None:
                fit_classes(model, source, names, trains, model_args.ignore_mismatched_sizes)
            return model, processor
        processor = read_processor(processor_name, **hub_kwargs)
    if names is not None and len(names) == 1:
        raise ValueError(
            f"The data set has the single class or identity {names[0]!r}, but a model needs two: put the images of "
            "each into its own folder."
        )
    if not trains:
        logger.warning(
            "%s is a plain encoder, so the classifiers that are evaluated are not trained: give a DCAL checkpoint, or "
            "add --do_train", source or "--backbone_config",
        )
    model = model_class.from_backbone(
        backbone,
        model_args.input_size,
        pretrained_kwargs=None if source is None else hub_kwargs,
        **labels,
        **model_args.dcal_kwargs,
    )
    return model, prepare_processor(processor, model.config.image_size)


def check_image_size(model_args: ModelArguments, config: DCALConfig) -> None:
    """
    Raises:
        ValueError: If `--image_size` is given, and another one than that of the checkpoint.
    """
    given = model_args.image_size
    if given is not None and tuple(given * 2)[:2] != tuple(config.image_size):
        raise ValueError(
            f"--image_size: the checkpoint {model_args.model_name_or_path} takes images of "
            f"{' x '.join(map(str, config.image_size))} pixels, which cannot be changed; leave out the option."
        )


def encoder_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a new encoder.

    Raises:
        ValueError: If transformers has no such encoder, or a field has another type.
    """
    try:
        return AutoConfig.for_model(**fields)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"--backbone_config is no configuration of an encoder: {reason_of(error)}.") from error


def fit_classes(model: DCALPreTrainedModel, source: str, names: list[str], trains: bool, replaces: bool) -> None:
    """Matches the classes of a checkpoint to those of the data set by name. Training adds the missing ones.

    Args:
        source (`str`): The checkpoint.
        names (list of `str`): The classes of the data set.
        trains (`bool`): Whether the model is trained.
        replaces (`bool`): Whether to keep only the classes of the data set and drop the checkpoint's other classes.

    Raises:
        ValueError: If the checkpoint lacks a class of the data set, or, in training, all of them.
    """
    known = class_names(model)
    if not has_class_names(model) and len(known) == len(names):
        logger.warning("%s has no class names: it gets the %d of the data set, in order", source, len(names))
        name_classes(model, names)
        return
    new = [name for name in names if name not in known]
    if new and not trains:
        raise ValueError(
            f"{source} lacks the {listed('class', new)} of the data set: its classes are {listed('', known)}. "
            "Rename them, remove them from the data set, or fine-tune with --do_train."
        )
    if len(new) == len(names) and not replaces:
        raise ValueError(
            f"{source} has none of the {listed('class', new)} of the data set: its classes are {listed('', known)}. "
            "Give --ignore_mismatched_sizes to replace its classifiers with newly initialised ones."
        )
    if trains and (new or replaces):
        if new:
            classes = counted(len(new), "newly initialised class", "newly initialised classes")
            logger.warning("Adding %s to %s: %s", classes, source, listed("", new))
        set_classes(model, names if replaces else known + new)


def listed(noun: str, names: list[str], limit: int = 10) -> str:
    """Formats names for an error message: `classes 'a', 'b'`, or `a, b` without a noun. Long lists are truncated."""
    shown = ", ".join(repr(name) if noun else name for name in names[:limit])
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    plural = "" if not noun else f"{noun} " if len(names) == 1 else f"{noun}es "
    return plural + shown + rest
