"""Output of the training recipes: a line per epoch, a table of results, and the files to open first."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from dcal_hf import DCALTrainer
from dcal_hf.errors import counted
from dcal_hf.model_card import COLUMNS


class EpochLines(ProgressCallback):
    """Shows progress bars, and prints a line per epoch with mean losses, metric and learning rate.

    Replaces the callbacks of transformers, which print each log as a dictionary.

    Args:
        branches (sequence of `str`): The trained branches; if there are several, the loss of each is printed.
        title (`str`), key (`str`): The metric and its name in the logs.
        rows (mapping from `str` to `str`): As from [`result_rows`].
    """

    def __init__(self, branches: Sequence[str], title: str, key: str, rows: Mapping[str, str]):
        super().__init__()
        names = branches if len(branches) > 1 else ()
        self.losses = {"loss": "loss"} | {f"loss_{name}": name.upper() for name in names}
        self.scores = {f"eval_{key}": title} | {f"eval_{prefix}{key}": name for name, prefix in rows.items() if prefix}
        self.clear()

    def clear(self) -> None:
        self.sums: dict[str, float] = {}
        self.num_steps = 0
        self.metrics: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.current_step = self.logged_step = state.global_step
        self.start = time.monotonic()
        if args.eval_strategy == "no":
            self.scores = {}
        if state.is_world_process_zero:
            self.training_bar = self.bar("Training", "step", state.max_steps, args, initial=state.global_step)
            self.write("epoch", self.losses.values(), self.scores.values(), "lr", "time")

    def bar(self, title: str, unit: str, total: int, args: TrainingArguments, **kwargs: Any) -> tqdm:
        return tqdm(desc=title, unit=unit, total=total, dynamic_ncols=True, disable=args.disable_tqdm, **kwargs)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        eval_dataloader = kwargs["eval_dataloader"]
        if state.is_world_process_zero and has_length(eval_dataloader):
            if self.prediction_bar is None:
                self.prediction_bar = self.bar("Evaluating", "batch", len(eval_dataloader), args, leave=False)
            self.prediction_bar.update(1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collects the values for the line of the epoch."""
        logs = kwargs["logs"]
        if not state.is_world_process_zero or self.training_bar is None:
            return
        if "loss" in logs:
            steps, self.logged_step = state.global_step - self.logged_step, state.global_step
            for name in self.losses:
                self.sums[name] = self.sums.get(name, 0.0) + steps * logs.get(name, 0.0)
            self.num_steps, self.rate, self.epoch = self.num_steps + steps, logs["learning_rate"], state.epoch
        if any(name in logs for name in self.scores):
            if self.metrics:
                self.write_epoch(state)
            self.metrics, self.epoch = logs, state.epoch

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Not at the end of the epoch, because it is evaluated after that.
        self.write_epoch(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.write_epoch(state)
        super().on_train_end(args, state, control, **kwargs)

    def write_epoch(self, state: TrainerState) -> None:
        if self.num_steps == 0 and not self.metrics:
            return
        means = {name: total / self.num_steps for name, total in self.sums.items()} if self.num_steps else {}
        self.write(
            f"{self.epoch:.4g}/{state.num_train_epochs}",
            [loss_text(means[name]) if name in means else "" for name in self.losses],
            [f"{100 * self.metrics[name]:.2f}" if name in self.metrics else "" for name in self.scores],
            f"{self.rate:.1e}" if self.num_steps else "",
            duration(time.monotonic() - self.start),
        )
        self.clear()

    def write(self, epoch: str, losses: Sequence[str], scores: Sequence[str], rate: str, elapsed: str) -> None:
        groups = [f"{epoch:>9}" + "".join(f" {loss:>8}" for loss in losses)]
        if self.scores:
            groups.append("".join(f"{score:>7}" for score in scores))
        self.training_bar.write(" |".join([*groups, f"{rate:>8} {elapsed:>8}"]))


def print_epochs(trainer: DCALTrainer, title: str, key: str) -> None:
    """Makes the trainer print with [`EpochLines`]."""
    config = trainer.model.config
    trainer.remove_callback(PrinterCallback if trainer.args.disable_tqdm else ProgressCallback)
    trainer.add_callback(EpochLines(config.branches, title, key, result_rows(config.inference_branches)))


def print_training(trainer: DCALTrainer, metrics: Mapping[str, float] | None) -> None:
    """Prints how long training took, and which epoch is kept; metrics are None for a run that was complete before."""
    state, args = trainer.state, trainer.args
    print(
        f"The run was complete: {counted(state.global_step, 'step')}. Nothing was trained."
        if metrics is None else
        f"Trained on {counted(metrics['train_samples'], 'image')}, {counted(state.global_step, 'step')}, in "
        f"{duration(metrics['train_runtime'])}; mean loss {metrics['train_loss']:.4f}."
    )
    if args.load_best_model_at_end and state.best_global_step:
        epoch = state.best_global_step * state.epoch / state.global_step
        print(f"Kept epoch {epoch:.4g}, the best by {args.metric_for_best_model}: {state.best_metric:.4f}.")


def loss_text(loss: float) -> str:
    return f"{loss:.4f}" if abs(loss) < 1000 else f"{loss:.2e}"


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def result_rows(branches: Sequence[str]) -> dict[str, str]:
    """The rows of the results table and the prefixes of their metrics: each branch, if there are two, and both."""
    rows = {name.upper(): f"{name}_" for name in branches}
    joint = " + ".join(rows)
    return {joint: ""} if len(rows) == 1 else {**rows, joint: ""}


def print_results(title: str, task: str, rows: Mapping[str, str], metrics: Mapping[str, float]) -> None:
    """Prints a table of the metrics in the model card.

    Args:
        title (`str`): What was evaluated.
        task (`str`): Name of the task on the Hub.
        rows (mapping from `str` to `str`): Titles of the rows, and the prefixes of their metrics.
        metrics (mapping from `str` to `float`): Fractions.
    """
    columns = COLUMNS[task]
    width = max(map(len, rows))
    print(f"\n{title}, in %\n{'':<{width + 2}}" + "".join(f"{name:>{max(len(name), 6) + 2}}" for name in columns))
    for row, prefix in rows.items():
        cells = [f"{100 * metrics[prefix + key]:>{max(len(name), 6) + 2}.2f}" for name, key in columns.items()]
        print(f"  {row:<{width}}" + "".join(cells))


def print_outputs(output_dir: str, files: Mapping[str, str], next_commands: Mapping[str, str]) -> None:
    """Prints which of the existing files to open first, and the next commands.

    Args:
        files (mapping from `str` to `str`): What is in each file.
        next_commands (mapping from `str` to `str`): What each command does.
    """
    paths = {Path(output_dir, name): purpose for name, purpose in files.items()}
    paths = {str(path): purpose for path, purpose in paths.items() if path.exists()}
    width = max(map(len, paths), default=0)
    print("\nOpen first:")
    for path, purpose in paths.items():
        print(f"  {path:<{width}}  {purpose}")
    for command, purpose in next_commands.items():
        print(f"{purpose}:\n  {command}")
