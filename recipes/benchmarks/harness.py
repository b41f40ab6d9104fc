"""Shared by the benchmarks: runs cases in their own processes, measures time and memory, and writes reports.

A benchmark calls `run` with a table of its cases. Without `--case`, it runs its own command line once per case and
repetition (`measure`) and writes the medians as Markdown (`write_report`). With `--case`, it runs only that case and
prints the results as JSON.
"""

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from dcal_hf.files import write_atomically


Figures = dict[str, float]
NOTES = "<!-- Notes: a new run keeps them; check that they are still true. -->"
Result = TypeVar("Result")


def now() -> float:
    """The time in seconds, read after the GPU, if used, has finished."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result of `work`, and its time in seconds."""
    start = now()
    result = work()
    return result, now() - start


def median_seconds(work: Callable[[], object], count: int) -> float:
    """The median time of `count` runs of `work`, after one to warm up."""
    return statistics.median([timed(work)[1] for _ in range(1 + count)][1:])


def peak_memory() -> int:
    """The peak resident memory of the process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int:
    """The current resident memory of the process, in bytes."""
    return psutil.Process().memory_info().rss


def run(
    description: str,
    name: str,
    cases: Iterable[str],
    run_case: Callable[[argparse.Namespace], Figures],
    report: Callable[[argparse.Namespace, dict[str, Figures]], list[str]],
    *,
    packages: Sequence[str],
    add_arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
    chosen: Callable[[argparse.Namespace], Iterable[str]] | None = None,
    repeats: int = 1,
    once: Iterable[str] = (),
) -> None:
    """The command line of a benchmark: runs all cases and writes the report, or runs one with `--case`.

    Args:
        description (`str`): The benchmark's docstring.
        name (`str`): The name of its report, unless the options choose a `report`.
        cases (names): What it can run, in the order of the tables.
        run_case (`Callable`): Measures `args.case` in this process. All cases share the empty folder `args.folder`.
        report (`Callable`): Title, paragraphs and tables from the options and the figures of all cases.
        packages (names of modules): Whose versions matter, besides those of Python, torch and NumPy.
        add_arguments (`Callable`): Adds the benchmark's own options.
        chosen (`Callable`): The cases that the options choose, by default all.
        repeats (`int`): Processes per case; of those in `once`, which take long, there is one.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the report; by default next to the script")
    parser.add_argument("--repeats", type=int, default=repeats, help="processes per case")
    # The metavar keeps the help from listing all names twice; a wrong name lists them.
    parser.add_argument("--case", metavar="NAME", choices=list(cases), help="run only this case; print its results")
    parser.add_argument("--folder", type=Path, help="folder for files that cases share")
    add_arguments(parser)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(args)))
        return
    names = cases if chosen is None else chosen(args)
    with tempfile.TemporaryDirectory() as folder:
        results = measure({name: 1 if name in once else args.repeats for name in names}, folder)
    write_report(args, vars(args).get("report", name), report(args, results), packages)


def measure(repeats: Mapping[str, int], folder: str) -> dict[str, Figures]:
    """Runs each case in its own process, as often as `repeats` says; returns their [`summary`].

    In turn, so that a machine that slows down does so for all of them.
    """
    runs: dict[str, list[Figures]] = {name: [] for name in repeats}
    turns = [name for turn in range(max(repeats.values())) for name, count in repeats.items() if turn < count]
    for number, name in enumerate(turns, start=1):
        command = [sys.executable, *sys.argv, "--case", name, "--folder", folder]
        process, seconds = timed(lambda: subprocess.run(command, stdout=subprocess.PIPE, check=True))
        # Libraries may print before it.
        runs[name].append(json.loads(process.stdout.splitlines()[-1]))
        figures = ", ".join(f"{key} {value:,.4g}" for key, value in runs[name][-1].items())
        print(f"[{number}/{len(turns)}, {seconds:.0f} s] {name}: {figures}", flush=True)
    return {name: summary(figures) for name, figures in runs.items()}


def summary(runs: Sequence[Figures]) -> Figures:
    """The median of each result, and the smallest of the seconds as `fastest`, because it is least disturbed by other
    work on the machine."""
    figures = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    if "seconds" in figures:
        figures["fastest"] = min(run["seconds"] for run in runs)
    return figures


def machine(packages: Sequence[str], device: str) -> str:
    """One line with processor, memory, GPU if used, and versions."""
    cpu = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    gpu = f", {torch.cuda.get_device_name()} (CUDA {torch.version.cuda})" if device == "cuda" else ""
    versions = "".join(f", {name} {importlib.import_module(name).__version__}" for name in ("numpy", *packages))
    return (
        f"{cpu}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB{gpu}; "
        f"Python {platform.python_version()}, torch {torch.__version__} ({torch.get_num_threads()} threads){versions}"
    )


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """A Markdown table; the keys of the rows are the header. All columns except the first are right-aligned."""
    rows = list(rows)
    lines = [rows[0].keys(), ["---", *["---:"] * (len(rows[0]) - 1)], *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_report(args: argparse.Namespace, name: str, blocks: Sequence[str], packages: Sequence[str]) -> None:
    """Writes title, machine, paragraphs and tables as Markdown. Keeps the notes of the report next to this file, which
    are the text after `NOTES` and are written by hand."""
    device = vars(args).get("device", "cpu")
    own = Path(__file__).with_name(f"{name}.md")
    path = args.output or (own.with_stem(f"{name}_cuda") if device == "cuda" else own)
    notes = own.read_text().partition(NOTES)[2]
    title, *others = blocks
    write_atomically(path, "\n\n".join([f"# {title}", machine(packages, device), *others, NOTES]) + notes)
