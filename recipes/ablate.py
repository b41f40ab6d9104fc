# /// script
# dependencies = ["dcal_hf[pictures]"]
# ///
"""Runs an ablation: one recipe with different options over paired seeds, and reports the effect of each option.

    python recipes/ablate.py recipes/ablations/grocery_components.yaml --data_dir grocery \
        --encoder_data_dir clothing-small --output_dir out/components --jobs 2

Options that are not listed below are passed to every run (`--data_dir`, `--model_name_or_path`, ...). If the command
is run again, finished runs are skipped, and a killed run resumes from its last checkpoint, or starts over without one.
To run a single arm and seed:

    python recipes/ablate.py ... --arms sa_glca --seeds 0

To write only the report, from the finished runs:

    python recipes/ablate.py recipes/ablations/grocery_components.yaml --output_dir out/components --report

The ablation is a YAML file with the keys

    recipe: run_fgvc.py          # or run_reid.py, in this folder
    config: grocery.yaml         # its configuration, relative to the ablation file
    encoder: small_encoder.yaml  # optional: a plain encoder that is trained first, and that all runs start from
    metrics: [accuracy]          # from the recipe's results; the first one is plotted
    reference: sa                # the arm that the others are compared with
    seeds: [0, 1, 2, 3, 4]
    arms: {sa: {branches: [sa]}, dcal: {}, ...}  # options of each arm, which override the configuration; $NAME is an
                                                 # environment variable
    labels: {sa: plain ViT}      # optional: names of arms in the report

Seeds are paired: with the same seed, the modules that arms share start from the same weights, and images come in the
same order with the same augmentation. No model is selected on the test images: the last epoch is evaluated.
"""

if __name__ == "__main__":
    from cli import run_script

    # Imports this file as a module, unless only its help is asked for, because the imports below take seconds.
    raise SystemExit(run_script(__file__))

import argparse
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Queue
from threading import Event

import torch
import yaml
from ablation_report import Row, read_rows, save_rows, write_report
from arguments import Parser, find_configuration, read_configuration, with_home
from registration import register_from
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel

from dcal_hf.errors import counted
from dcal_hf.files import write_atomically
from dcal_hf.training import last_checkpoint


RECIPES = Path(__file__).parent
# Keep the weights of the last epoch. Evaluating earlier would only cost time.
LAST_EPOCH = {"eval_strategy": "no", "load_best_model_at_end": False, "disable_tqdm": True}
# As `os.path.expandvars` finds them.
VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")
# In seconds: how often a thread checks whether its recipe has ended.
POLLING_TIME = 0.5


@dataclass(frozen=True)
class Ablation:
    """The content of an ablation file; see the docstring of this script.

    Raises:
        ValueError: If a key is missing or unknown, or the reference or a label is not that of an arm.
    """

    recipe: str
    config: str
    metrics: Sequence[str]
    reference: str
    seeds: Sequence[int]
    arms: Mapping[str, Mapping[str, object]]
    encoder: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Ablation":
        values = read_configuration(path)
        names = set(cls.__dataclass_fields__)
        missing, unknown = names - set(values) - {"encoder", "labels"}, set(values) - names
        if missing or unknown:
            raise ValueError(
                f"{path} is not an ablation file: it lacks {sorted(missing)} and has the unknown {sorted(unknown)}; "
                f"the keys are {', '.join(sorted(names))}."
            )
        ablation = cls(**values)
        for arm in (ablation.reference, *ablation.labels):
            if arm not in ablation.arms:
                raise ValueError(
                    f"{path}: '{arm}', in reference or labels, is not one of the arms {', '.join(ablation.arms)}."
                )
        return ablation

    @property
    def all_labels(self) -> dict[str, str]:
        """The name of every arm in the report: its label, if it has one."""
        return {arm: arm for arm in self.arms} | dict(self.labels)


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Args:
        options (`dict`): All options of the recipe, including the seed and the output folder.
        digest (`str`): Hash of the arm's options, without paths, to check that a finished run has the same options.
    """

    arm: str
    seed: int
    options: Mapping[str, object]
    digest: str

    @property
    def folder(self) -> Path:
        return Path(self.options["output_dir"])


def plan(ablation: Ablation, path: Path, output_dir: Path, extra: Mapping[str, object]) -> list[Run]:
    """All runs, seed by seed, so that an interrupted ablation can compare all arms on some seeds."""
    base = {**read_configuration(path.parent / ablation.config), **LAST_EPOCH}
    runs = []
    for seed in ablation.seeds:
        for arm, options in ablation.arms.items():
            described = {**base, **options}
            digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]
            folder = output_dir / f"{arm}-{seed}"
            given = {name: expanded(value) for name, value in {**described, **extra}.items()}
            runs.append(Run(arm, seed, {**given, "seed": seed, "output_dir": str(folder)}, digest))
    return runs


def expanded(value: object) -> object:
    """Expands environment variables in a string, such as `$OTHER_IMAGES`."""
    return os.path.expandvars(value) if isinstance(value, str) else value


def check_rows(runs: Iterable[Run], rows: Iterable[Row], results: Path) -> None:
    """
    Raises:
        ValueError: If a row has other options than its arm.
    """
    digests = {run.arm: run.digest for run in runs}
    for row in rows:
        if digests.get(row.arm, row.digest) != row.digest:
            raise ValueError(
                f"{results} has a run of '{row.arm}' with seed {row.seed} and other options: delete its line and its "
                "folder, or give another --output_dir."
            )


def remaining(runs: Iterable[Run], rows: Iterable[Row]) -> list[Run]:
    """The runs that have no row yet.

    Raises:
        ValueError: If an environment variable is not set.
    """
    done = {(row.arm, row.seed) for row in rows}
    todo = [run for run in runs if (run.arm, run.seed) not in done]
    for run in todo:
        texts = [value for value in run.options.values() if isinstance(value, str)]
        unset = [found[0] for found in map(VARIABLE.search, texts) if found is not None]
        if unset:
            raise ValueError(
                f"The arm '{run.arm}' needs the environment variable {unset[0]}: set it, or leave it out (--arms)."
            )
    return todo


def call(
    recipe: str, options: Mapping[str, object], threads: int, interrupted: Event, device: int = 0
) -> bool:
    """Runs a recipe in a subprocess; its output goes to `log.txt` in its output folder.

    Args:
        interrupted (`Event`): Ends the subprocess once it is set.

    Returns:
        Whether it was resumed from a checkpoint.

    Raises:
        ChildProcessError: If it fails.
    """
    folder = Path(options["output_dir"])
    config = write_atomically(folder / "config.yaml", yaml.safe_dump(dict(options), sort_keys=False))
    command = [sys.executable, str(RECIPES / recipe), str(config)]
    try:
        command += ["--resume_from_checkpoint", last_checkpoint(folder)]
        resumes = True
    except FileNotFoundError:
        # A run that was killed before its first complete checkpoint starts over.
        command.append("--overwrite_output_dir")
        resumes = False
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if torch.cuda.device_count() > 0:
        environment["CUDA_VISIBLE_DEVICES"] = str(device % torch.cuda.device_count())
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None and not interrupted.wait(POLLING_TIME):
                pass
        finally:
            # No effect on a process that has ended.
            process.terminate()
            code = process.wait()
    if code != 0:
        last_line = Path(log.name).read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
        raise ChildProcessError(f"{recipe} failed with exit status {code}: {last_line} All output is in {log.name}.")
    return resumes


def train_encoder(config: Path, encoder: Path, data_dir: str | None, threads: int, register: str | None) -> None:
    """Trains the plain encoder that all runs start from, unless it exists.

    Args:
        register (`str`, *optional*): The file of `--register`, if that is given.

    Raises:
        ValueError: If no images to train it on are given.
    """
    folder = encoder.with_name("encoder_run")
    if (encoder / "preprocessor_config.json").is_file():
        return
    if data_dir is None:
        raise ValueError(
            f"The runs start from an encoder that {config} trains: give its images with --encoder_data_dir, or give "
            "another encoder with --model_name_or_path."
        )
    options = {**read_configuration(config), "data_dir": data_dir, "output_dir": str(folder)}
    if register is not None:
        options["register"] = register
    if not (folder / "all_results.json").is_file():
        call("run_fgvc.py", options, threads, Event())
    if options.get("register") is not None:
        # This process loads the encoder, too.
        register_from(Path(options["register"]))
    save_encoder(folder, encoder)


def save_encoder(checkpoint: Path, folder: Path) -> None:
    """Saves the plain encoder of a DCAL checkpoint, then its image processor, which marks it as complete."""
    AutoModel.from_pretrained(checkpoint).backbone.save_pretrained(folder)
    AutoImageProcessor.from_pretrained(checkpoint).save_pretrained(folder)


def result(run: Run, metrics: Sequence[str], resumed: bool) -> Row:
    """The row of a finished run."""
    results = json.loads((run.folder / "all_results.json").read_text(encoding="utf-8"))
    scores = {
        f"{branch}{metric}": results[f"eval_{branch}{metric}"]
        for metric in metrics
        for branch in ("", "sa_", "glca_")
        if f"eval_{branch}{metric}" in results
    }
    # A resumed run has timed only part of its steps.
    seconds = math.nan if resumed else 1 / results["train_steps_per_second"]
    return Row(run.arm, run.seed, run.digest, seconds, last_loss(run.folder), scores)


def last_loss(folder: Path) -> float:
    """The last logged training loss of SA, which is comparable between arms, or of GLCA if SA is not trained."""
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [line.get("loss_sa", line.get("loss_glca")) for line in history if "loss" in line]
    return losses[-1] if losses else float("nan")


def execute(runs: Sequence[Run], ablation: Ablation, output_dir: Path, jobs: int, threads: int) -> list[str]:
    """Executes runs, `jobs` at a time, saves each result as it arrives, and returns the errors."""
    results, errors, interrupted = output_dir / "results.csv", [], Event()
    slots: Queue[int] = Queue()
    for slot in range(jobs):
        slots.put(slot)

    def one(run: Run) -> Row:
        slot = slots.get()
        try:
            resumed = call(ablation.recipe, run.options, threads, interrupted, slot)
        finally:
            slots.put(slot)
        return result(run, ablation.metrics, resumed)

    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), unit="run", smoothing=0) as progress:
        futures = {pool.submit(one, run): run for run in runs}
        try:
            for future in as_completed(futures):
                run, error = futures[future], future.exception()
                if error is None:
                    save_rows([*read_rows(results), future.result()], results)
                else:
                    errors.append(f"{run.arm}, seed {run.seed}: {error}")
                progress.set_postfix_str(f"{run.arm}, seed {run.seed}")
                progress.update()
        finally:
            # After an interruption: no run begins any more, and those that are running end.
            pool.shutdown(wait=False, cancel_futures=True)
            interrupted.set()
    return errors


@dataclass
class AblationArguments:
    """Ablation; all other options are passed to every run."""

    output_dir: Path = field(metadata={"help": "Folder for the runs and the report."})
    encoder_data_dir: str | None = field(default=None, metadata={"help": "Folder of images to train the encoder on."})
    jobs: int = field(default=1, metadata={"help": "Number of parallel runs; each uses one GPU."})
    threads: int = field(default=1, metadata={"help": "Number of threads per run."})
    arms: list[str] | None = field(default=None, metadata={"help": "Run only these arms."})
    seeds: list[int] | None = field(default=None, metadata={"help": "Use these seeds instead of the ablation's."})
    report: bool = field(default=False, metadata={"help": "Only write the report."})


ARGUMENTS = (AblationArguments,)
POSITIONAL = ("ABLATION", "YAML file of the ablation, or the name of a bundled one.")


def parse_arguments() -> tuple[argparse.Namespace, dict[str, object]]:
    """The options of this script, and those passed to every run."""
    parser = Parser(ARGUMENTS)
    parser.add_argument("ablation", help=POSITIONAL[1])
    args, rest = parser.parse_known_args(with_home(sys.argv[1:]))
    args.ablation = find_configuration(args.ablation, RECIPES / "ablations")
    if len(rest) % 2 == 1 or any(not name.startswith("--") for name in rest[::2]):
        parser.error(f"options of the recipe must be pairs '--name value', got: {' '.join(rest)}")
    return args, {name.removeprefix("--"): value for name, value in zip(rest[::2], rest[1::2])}


def main() -> None:
    # As SIGINT, so that the running recipes end, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    args, extra = parse_arguments()
    ablation = Ablation.read(args.ablation)
    arms = list(ablation.arms) if args.arms is None else args.arms
    if not set(arms) <= set(ablation.arms):
        raise ValueError(f"--arms {' '.join(arms)}: the arms of {args.ablation} are {', '.join(ablation.arms)}.")
    results, errors = args.output_dir / "results.csv", []
    check_rows(plan(ablation, args.ablation, args.output_dir, extra), read_rows(results), results)
    if not args.report:
        try:
            errors = run_all(args, ablation, arms, extra)
        except KeyboardInterrupt as interruption:
            raise KeyboardInterrupt("The same command continues with the unfinished runs.") from interruption
    write_report(read_rows(results), ablation.all_labels, ablation.reference, ablation.metrics, args.output_dir)
    if errors:
        raise SystemExit("\n".join([f"{counted(len(errors), 'run')} failed:", *errors]))


def run_all(args: argparse.Namespace, ablation: Ablation, arms: Sequence[str], extra: dict[str, object]) -> list[str]:
    """Trains the encoder if needed, executes the unfinished runs of the arms, and returns their errors."""
    encoder = args.output_dir / "encoder"
    trains_encoder = ablation.encoder is not None and "model_name_or_path" not in extra
    if trains_encoder:
        extra = {**extra, "model_name_or_path": str(encoder)}
    chosen = replace(ablation, seeds=ablation.seeds if args.seeds is None else args.seeds)
    runs = [run for run in plan(chosen, args.ablation, args.output_dir, extra) if run.arm in arms]
    todo = remaining(runs, read_rows(args.output_dir / "results.csv"))
    if todo and trains_encoder:
        config = args.ablation.parent / ablation.encoder
        train_encoder(config, encoder, args.encoder_data_dir, args.threads * args.jobs, extra.get("register"))
    return execute(todo, ablation, args.output_dir, args.jobs, args.threads)
