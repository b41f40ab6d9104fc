"""Functions shared by the recipes: logging, training, and facts for the model card."""

import logging
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import transformers
from arguments import ModelArguments
from console import print_training
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

import dcal_hf
from dcal_hf import DCALConfig, DCALTrainer, DCALTrainingArguments
from dcal_hf.data import UnreadableImageError
from dcal_hf.model_card import ModelCardFacts, write_model_card
from dcal_hf.training import (
    check_best_metric,
    check_resumable,
    check_unlocked,
    checkpoint_folders,
    last_checkpoint,
    named_weights,
)


logger = logging.getLogger(__name__)


def set_up_logging(level: int) -> None:
    """Sets one log format and level for all libraries."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=level, stream=sys.stderr
    )
    # It passes its messages on, too.
    logging.getLogger("huggingface_hub").handlers.clear()
    # Messages about which part of a data set is used are always shown.
    logging.getLogger("dcal_hf.data").setLevel(min(level, logging.INFO))
    # transformers asks for pinned memory everywhere; torch warns for each loader where there is no accelerator.
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true", module="torch.utils.data")
    datasets.utils.logging.set_verbosity(level)
    transformers.utils.logging.set_verbosity(level)


def start_run(training_args: DCALTrainingArguments, overwrite: bool) -> None:
    """Sets up logging, checks the output folder and the checkpoint to resume from, and sets the seed."""
    set_up_logging(training_args.get_process_log_level())
    logger.info(
        "Process %d of %d on %s, bf16 %s, fp16 %s",
        training_args.process_index + 1,
        training_args.world_size,
        training_args.device,
        training_args.bf16,
        training_args.fp16,
    )
    find_checkpoint(training_args)
    check_earlier_run(training_args, overwrite)
    set_seed(training_args.seed)


def find_checkpoint(training_args: DCALTrainingArguments) -> None:
    """Replaces `--resume_from_checkpoint last` by the path of the last checkpoint, and checks a given path.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is incomplete.
    """
    checkpoint = training_args.resume_from_checkpoint
    if not training_args.do_train or checkpoint is None:
        return
    if checkpoint == "last":
        training_args.resume_from_checkpoint = last_checkpoint(training_args.output_dir)
    else:
        check_resumable(checkpoint, training_args.process_index, training_args.world_size)


def check_earlier_run(training_args: DCALTrainingArguments, overwrite: bool) -> None:
    """Checks the output folder before training: a new run's `save_total_limit` may delete older checkpoints.

    Args:
        overwrite (`bool`): Whether [`OverwriteCallback`] will delete the checkpoints of an earlier run.

    Raises:
        BlockingIOError: If another run is training in the folder.
        ValueError: If a new run finds checkpoints of an earlier one and `overwrite` is false.
    """
    if not training_args.do_train:
        return
    folder = Path(training_args.output_dir)
    with training_args.main_process_first(desc="looking for an earlier run"):
        if training_args.should_save:
            # The Trainer locks the folder only when training begins: the other run might have ended by then, and its
            # checkpoints would not be noticed.
            check_unlocked(folder)
        if training_args.resume_from_checkpoint is None and not overwrite and checkpoint_folders(folder):
            resume = "resume it with --resume_from_checkpoint last, " if is_resumable(folder) else ""
            raise ValueError(
                f"{folder} holds the checkpoints of an earlier run: {resume}delete them with --overwrite_output_dir, "
                "or give another --output_dir."
            )


def is_resumable(output_dir: str | Path) -> bool:
    """Whether `--resume_from_checkpoint last` finds a complete checkpoint."""
    try:
        last_checkpoint(output_dir)
    except FileNotFoundError:
        return False
    return True


class OverwriteCallback(TrainerCallback):
    """Deletes the checkpoints of an earlier run.

    Not before training begins: all options have been checked by then, and the Trainer has locked the folder.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.should_save:
            for checkpoint in checkpoint_folders(Path(args.output_dir)):
                shutil.rmtree(checkpoint)


def check_names(
    training_args: DCALTrainingArguments, classes: Sequence[str] | None, metrics: Sequence[str]
) -> None:
    """Checks the names in options early, which a trainer only checks with the images.

    Args:
        classes (sequence of `str`): The classes of the model, if it is trained.
        metrics (sequence of `str`): The metrics of an evaluation.

    Raises:
        ValueError: If `class_weights` names no class, or `metric_for_best_model` no metric.
    """
    check_best_metric(training_args, metrics)
    if isinstance(training_args.class_weights, Mapping):
        named_weights(training_args.class_weights, classes)


def train(trainer: DCALTrainer, overwrite: bool = False) -> None:
    """Trains, or resumes from the checkpoint that [`find_checkpoint`] has found, and saves model and state.

    With `overwrite`, training from scratch deletes the checkpoints of an earlier run.
    """
    checkpoint = trainer.args.resume_from_checkpoint
    if overwrite and checkpoint is None:
        trainer.add_callback(OverwriteCallback)
    first_step = 0 if checkpoint is None else trained_steps(checkpoint)
    try:
        metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    except KeyboardInterrupt as interruption:
        if not is_resumable(trainer.args.output_dir):
            raise
        raise KeyboardInterrupt(
            "--resume_from_checkpoint last, added to the same command, resumes from the last checkpoint."
        ) from interruption
    except UnreadableImageError as error:
        raise UnreadableImageError(
            f"{str(error).rstrip()}, or give --check_files full --skip_broken, which leaves out such images."
        ) from error
    trainer.save_model()
    was_complete = trainer.state.global_step == first_step
    if not was_complete:
        metrics["train_samples"] = len(trainer.train_dataset)
        trainer.save_metrics("train", metrics)
    if trainer.is_world_process_zero():
        print_training(trainer, None if was_complete else metrics)
    trainer.save_state()


def trained_steps(checkpoint: str) -> int:
    """The number of optimiser steps before a checkpoint."""
    return TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME))).global_step


def model_card_facts(trainer: DCALTrainer, model_args: ModelArguments) -> dict[str, str | None]:
    """The fields of `ModelCardFacts` that both training recipes fill in the same way."""
    args, source = trainer.args, model_args.model_name_or_path
    own_name = args.hub_model_id or Path(args.output_dir).resolve().name
    if not args.do_train and source is not None:
        # The output folder has no model.
        own_name = Path(source).resolve().name if Path(source).is_dir() else source
    return {
        "model_name": own_name,
        "base_model": source if args.do_train else None,
        "license": model_args.license,
        "registered_encoder": registered_encoder(trainer.model.config),
        "chosen_by": args.metric_for_best_model if args.do_train and args.load_best_model_at_end else None,
    }


def registered_encoder(config: DCALConfig) -> str | None:
    """The type of the encoder if a user's code has registered its adapter."""
    own = config.adapter.__module__.partition(".")[0] == dcal_hf.__name__
    return None if own else config.backbone_config.model_type


def save_model_card(trainer: DCALTrainer, facts: ModelCardFacts) -> None:
    """Writes the model card. An evaluation does not replace that of the training in the folder of the model."""
    folder = Path(trainer.args.output_dir)
    if trainer.args.do_train or not ((folder / "config.json").exists() and (folder / "README.md").exists()):
        write_model_card(folder, facts)


def dataset_title(name: str | None, folder: str | None, layout: str | None) -> str:
    """The name of a data set: of its folder or table if there is one, even if it has the layout of a published one."""
    source = folder if name is None or layout is not None else name
    path = Path(source)
    if not path.exists():
        return source
    # Of an archive, .tar.gz is the suffix.
    return path.resolve().name if path.is_dir() else Path(path.resolve().name.removesuffix(".gz")).stem


def hyperparameters(trainer: DCALTrainer) -> dict[str, object]:
    """The hyperparameters that both training recipes report, without those of branches that are not trained."""
    args, config = trainer.args, trainer.model.config
    switches, options = ["drop_path_rate", "loss_weighting", "initial_log_var"], []
    if "pwca" in config.branches:
        switches, options = ["num_pwca_blocks", *switches], ["pair_sampling", "pwca_fraction"]
    if "glca" in config.branches:
        glca = ["num_glca_blocks", "local_query_ratio", "local_query_selection", "glca_scope", "glca_readout"]
        switches = [*glca, *switches]
    options += ["freeze_backbone", "layer_decay", "lora_rank", *(["lora_targets"] if args.lora_rank > 0 else [])]
    length = {"steps": args.max_steps} if args.max_steps > 0 else {"epochs": f"{args.num_train_epochs:g}"}
    encoder = config.backbone_config
    name = getattr(encoder, "architecture", None) or encoder.model_type
    return {
        "encoder": f"{name}, {config.num_layers} blocks, width {encoder.hidden_size}",
        "image size": " x ".join(map(str, config.image_size)),
        "branches": ", ".join(config.branches),
        **{name: getattr(config, name) for name in switches},
        **{name: getattr(args, name) for name in options},
        "optimiser": args.optim.value,
        "learning rate": args.learning_rate,
        "schedule": f"{args.lr_scheduler_type.value}, warm-up {args.warmup_steps:g}",
        "weight decay": args.weight_decay,
        "gradient clipping": f"norm {args.max_grad_norm:g}" if args.max_grad_norm > 0 else "off",
        "label smoothing": args.label_smoothing_factor,
        "total batch": args.total_train_batch_size,
        **length,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": args.seed,
    }
