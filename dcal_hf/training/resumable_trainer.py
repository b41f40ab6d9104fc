"""A Trainer that locks its output folder and resumes only from complete checkpoints."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from .checkpoints import (
    begin_run,
    best_checkpoint,
    check_resumable,
    complete_manifest,
    delete_checkpoints,
    last_checkpoint,
    lock_output_dir,
    remove_local_path,
    write_manifest,
)
from .finite import check_weights


class ResumableTrainer(Trainer):
    """`Trainer` that writes a manifest into each checkpoint, and resumes only from checkpoints that have one.

    Attributes:
        run_id (`str`): The ID of the run, recorded in its checkpoints; empty before `train`.
    """

    run_id = ""

    def train(
        self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """As in `transformers.Trainer`, but the checkpoint to resume from must be complete, see [`last_checkpoint`].

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            BlockingIOError: If another run is training in the output folder; the message names its process and host.
            FloatingPointError: At the first step whose loss or gradients are not finite; on devices other than the
                CPU, at the next log or checkpoint. Also if weights are not finite at a checkpoint or at the end. The
                previous checkpoint is kept.
            ValueError: If the checkpoint is incomplete, or if `lora_rank` is set under DeepSpeed or FSDP, since
                adapters only merge into unsharded weights.
        """
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = last_checkpoint(self.args.output_dir)
        if checkpoint is not None:
            check_resumable(checkpoint, self.args.process_index, self.args.world_size)
            checkpoint = str(checkpoint)
        with self._own_output_dir():
            self.run_id = begin_run(self.args.output_dir, checkpoint, self.args.should_save)
            output = self._train(checkpoint, *args, **kwargs)
            self._check_weights()
            return output

    def _own_output_dir(self) -> AbstractContextManager:
        """Creates the output folder and locks it, in the process that writes."""
        if not self.args.should_save:
            return nullcontext()
        Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
        return lock_output_dir(self.args.output_dir)

    def _train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains while the output folder is locked."""
        return super().train(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # All processes have written what resuming needs, and no older checkpoint has been deleted yet.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(output_dir, self.run_id)

    def _check_weights(self) -> None:
        # Sharded weights are in no process as a whole; their losses and gradients are checked.
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            check_weights(self.model, self.state.global_step)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._check_weights()
        with self._without_rotation():
            super()._save_checkpoint(model, trial)
        if not self.args.should_save:
            return
        folder = Path(self._get_output_dir(trial))
        if not self.args.push_to_hub:
            self._complete_checkpoint(folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        delete_checkpoints(folder, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _complete_checkpoint(self, folder: str | Path) -> None:
        if self.args.should_save:
            remove_local_path(folder)
            if not self.args.save_only_model:
                complete_manifest(folder)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Before the upload, which reads the files while training goes on.
        self._complete_checkpoint(checkpoint_folder)
        super()._push_from_checkpoint(checkpoint_folder)

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> TrainOutput:
        with self._without_rotation():
            output = super()._finalize_training(trial, *args, **kwargs)
        best = self.state.best_model_checkpoint
        if self.args.should_save and self.args.save_total_limit == 1 and best is not None:
            delete_checkpoints(self._get_output_dir(trial), 1, best, ended=True)
        return output

    @contextmanager
    def _without_rotation(self) -> Iterator[None]:
        """Keeps transformers from deleting checkpoints: it takes every folder `checkpoint-*` for one."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit

    def save_state(self) -> None:
        """As in `transformers.Trainer`, without the local path of the best checkpoint, since the file is pushed."""
        best, self.state.best_model_checkpoint = self.state.best_model_checkpoint, None
        super().save_state()
        self.state.best_model_checkpoint = best

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        trained = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None:
            self.state.best_model_checkpoint = best_checkpoint(resume_from_checkpoint, self.state.best_global_step)
        # transformers checks whether all steps are done only after a step: of a complete run, no epoch may begin.
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else trained


__all__ = ["ResumableTrainer"]
