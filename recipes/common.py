"""What the training recipes share: logging, loading a model, training it, and the table of its settings."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import datasets
import transformers
from arguments import ModelArguments
from datasets import Dataset
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor, ViTImageProcessor

from dcal_hf import DCALConfig, DCALTrainer, DCALTrainingArguments
from dcal_hf.data import unlabelled_images
from dcal_hf.models import DCALPreTrainedModel
from dcal_hf.training import (
    checkpoint_folders,
    class_names,
    has_class_names,
    last_checkpoint,
    name_classes,
    set_classes,
)


logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=DCALPreTrainedModel)


def set_up_logging(level: int) -> None:
    """One format for all libraries, and one level."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=level, stream=sys.stderr
    )
    # What of a data set is used is told at any level.
    logging.getLogger("dcal_hf.data").setLevel(min(level, logging.INFO))
    datasets.utils.logging.set_verbosity(level)
    transformers.utils.logging.set_verbosity(level)


def log_process(training_args: DCALTrainingArguments) -> None:
    logger.info(
        "Process %d of %d on %s, bf16 %s, fp16 %s",
        training_args.process_index + 1,
        training_args.world_size,
        training_args.device,
        training_args.bf16,
        training_args.fp16,
    )


def claim_output_dir(training_args: DCALTrainingArguments, overwrite: bool) -> None:
    """Before a training from the start: its rotation of checkpoints would delete those of an earlier run.

    Args:
        overwrite (`bool`): Whether these are to be deleted now.

    Raises:
        ValueError: If there are any, and they are not.
    """
    if not training_args.do_train or training_args.resume_from_checkpoint is not None:
        return
    folder = Path(training_args.output_dir)
    with training_args.main_process_first(desc="looking for checkpoints of an earlier run"):
        checkpoints = checkpoint_folders(folder)
        if checkpoints and not overwrite:
            raise ValueError(
                f"{folder} holds the checkpoints of an earlier run: go on with it by --resume_from_checkpoint last, "
                "delete them with --overwrite_output_dir, or give another --output_dir."
            )
        for checkpoint in checkpoints:
            shutil.rmtree(checkpoint)


def load_model(
    model_class: type[Model],
    prepare_processor: Callable[[BaseImageProcessor, tuple[int, int]], BaseImageProcessor],
    model_args: ModelArguments,
    names: list[str] | None,
    trains: bool = True,
) -> tuple[Model, BaseImageProcessor]:
    """A DCAL checkpoint as it is, or DCAL put on a plain encoder, with the image processor that goes with it.

    Args:
        model_class: What is made of it.
        prepare_processor: Makes the image processor of a plain encoder that of the recipe, for an input size.
        model_args (`ModelArguments`): Where it comes from.
        names (list of `str`, *optional*): The classes of the data set; the checkpoint's own if not given.
        trains (`bool`): Whether a checkpoint may get classes of the data set that it does not know.

    Raises:
        ValueError: For another input size than a DCAL checkpoint's, or classes that it does not know; see
            [`fit_classes`].
    """
    labels = {}
    if names is not None:
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    source, hub_kwargs = model_args.model_name_or_path, model_args.hub_kwargs
    if source is None:
        backbone, processor = AutoConfig.for_model(**json.loads(model_args.backbone_config)), ViTImageProcessor()
    else:
        for name in (source, model_args.image_processor_name or source):
            check_source(name)
        backbone = source
        processor = AutoImageProcessor.from_pretrained(model_args.image_processor_name or source, **hub_kwargs)
        config = AutoConfig.from_pretrained(source, **hub_kwargs)
        if isinstance(config, DCALConfig):
            if model_args.image_size is not None:
                raise ValueError(f"--image_size: {source} is a DCAL checkpoint, of {tuple(config.image_size)} pixels.")
            model = model_class.from_pretrained(source, **model_args.dcal_kwargs, **hub_kwargs)
            if names is not None:
                fit_classes(model, source, names, trains, model_args.ignore_mismatched_sizes)
            return model, processor
    model = model_class.from_backbone(
        backbone,
        model_args.input_size,
        pretrained_kwargs=None if source is None else hub_kwargs,
        **labels,
        **model_args.dcal_kwargs,
    )
    return model, prepare_processor(processor, model.config.image_size)


def fit_classes(model: DCALPreTrainedModel, source: str, names: list[str], trains: bool, replaces: bool) -> None:
    """Lets the classes of a checkpoint stay what they are by name, and in training adds those of the data set.

    Args:
        source (`str`): The checkpoint.
        names (list of `str`): The classes of the data set.
        trains (`bool`): Whether it is trained on.
        replaces (`bool`): Whether the data set's classes take the place of the checkpoint's, which loses the others.

    Raises:
        ValueError: For classes that the checkpoint does not know, in training if it knows none of them.
    """
    known = class_names(model)
    if not has_class_names(model) and len(known) == len(names):
        logger.warning("%s names no classes: its %d are taken to be the data set's, in order", source, len(names))
        name_classes(model, names)
        return
    new = [name for name in names if name not in known]
    if new and not trains:
        raise ValueError(
            f"{source} does not know the {listed('class', new)} of the data set: its own are {listed('', known)}. "
            "Rename them, leave them out, or train on with --do_train."
        )
    if len(new) == len(names) and not replaces:
        raise ValueError(
            f"{source} knows none of the {listed('class', new)} of the data set: its own are {listed('', known)}. "
            "Give --ignore_mismatched_sizes to start new classifiers in their place."
        )
    if trains and (new or replaces):
        if new:
            logger.warning("%s gets %d classes more, which start anew: %s", source, len(new), listed("", new))
        set_classes(model, names if replaces else known + new)


def listed(noun: str, names: list[str], limit: int = 10) -> str:
    """`classes 'a', 'b'` for the message of an error; without a noun plain names. Long lists are cut."""
    shown = ", ".join(repr(name) if noun else name for name in names[:limit])
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    plural = "" if not noun else f"{noun} " if len(names) == 1 else f"{noun}es "
    return plural + shown + rest


def check_source(name: str) -> None:
    """Tells a path that is mistyped from the id of a model on the Hub.

    Raises:
        FileNotFoundError: If it is a path: it begins like one, has too many parts for an id, or lies in a folder that
            is there.
    """
    path = Path(name).expanduser()
    is_path = name.startswith((".", "/", "~")) or len(path.parts) > 2 or len(path.parts) > 1 and path.parent.is_dir()
    if is_path and not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {name}; check the path.")


def load_distractors(folder: str | None, transform: Callable[[dict[str, list]], dict[str, list]]) -> Dataset | None:
    """The images of `--distractor_dir`, transformed as those of training are."""
    return None if folder is None else unlabelled_images(Path(folder)).with_transform(transform)


def train(trainer: DCALTrainer) -> None:
    """Trains, from a checkpoint if asked to (`--resume_from_checkpoint last` finds it), and saves model and state."""
    checkpoint = trainer.args.resume_from_checkpoint
    if checkpoint == "last":
        checkpoint = last_checkpoint(trainer.args.output_dir)
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    metrics["train_samples"] = len(trainer.train_dataset)
    trainer.save_model()
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()


def model_card_facts(trainer: DCALTrainer, model_args: ModelArguments) -> dict[str, str | None]:
    """What the model cards of both recipes tell alike, as fields of `ModelCardFacts`."""
    args = trainer.args
    return {
        "model_name": args.hub_model_id or Path(args.output_dir).resolve().name,
        "base_model": model_args.model_name_or_path,
        "license": model_args.license,
        "chosen_by": args.metric_for_best_model if args.do_train and args.load_best_model_at_end else None,
    }


def dataset_title(name: str | None, folder: str | None, layout: str | None) -> str:
    """What a data set is called: by its folder or table, also if that is only laid out like a published one."""
    source = folder if name is None or layout is not None else name
    path = Path(source)
    if not path.exists():
        return source
    return path.resolve().name if path.is_dir() else path.resolve().stem


def hyperparameters(trainer: DCALTrainer) -> dict[str, object]:
    """What somebody needs to train the same model again, except for what a recipe adds."""
    args, config = trainer.args, trainer.model.config
    switches = ("branches", "num_glca_blocks", "num_pwca_blocks", "local_query_ratio", "local_query_selection")
    switches += ("glca_scope", "glca_readout", "drop_path_rate", "loss_weighting", "initial_log_var")
    return {
        "image size": " x ".join(map(str, config.image_size)),
        **{name: getattr(config, name) for name in switches},
        **{name: getattr(args, name) for name in ("pair_sampling", "pwca_fraction")},
        **{name: getattr(args, name) for name in ("freeze_backbone", "layer_decay", "lora_rank")},
        "optimiser": args.optim.value,
        "learning rate": args.learning_rate,
        "schedule": f"{args.lr_scheduler_type.value}, warm-up {args.warmup_steps:g}",
        "weight decay": args.weight_decay,
        "label smoothing": args.label_smoothing_factor,
        "total batch": args.total_train_batch_size,
        "epochs": args.num_train_epochs,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": args.seed,
    }
