"""What the benchmarks share: each case in a process of its own, its memory, the machine it ran on, the report.

A benchmark has a table `CASES` of what it can run. Called by a person, it runs its own command line once per case and
repetition (`measure`) and writes the medians as Markdown (`markdown_table`, `write_report`). Called with `--case`, it
runs that case alone and prints its figures as JSON (`parse`).
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
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import psutil
import torch

from dcal_hf.files import write_atomically


Figures = dict[str, float]


def peak_memory() -> int:
    """The process's largest resident size so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int:
    """The process's resident size now, in bytes."""
    return psutil.Process().memory_info().rss


def arguments(description: str, output: Path | None, cases: Iterable[str], repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has.

    Args:
        description (`str`): The benchmark's docstring.
        output (`Path`, *optional*): Where its report goes if not told otherwise.
        cases (names): What it can run.
        repeats (`int`): How often each case runs if not told otherwise.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="processes per case")
    parser.add_argument("--output", type=Path, default=output, help="the report")
    parser.add_argument("--case", choices=list(cases), help="run this case in this process and print its figures")
    return parser


def parse(parser: argparse.ArgumentParser, run_case: Callable[[argparse.Namespace], Figures]) -> argparse.Namespace:
    """The options of a whole run; with `--case`, runs that case instead and ends the process."""
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(args)))
        raise SystemExit
    return args


def measure(cases: dict[str, Sequence[str]], repeats: int = 1) -> dict[str, Figures]:
    """Runs each case in a process of its own, all of them in turn, `repeats` times over; returns what `summary` does.

    In turn, so that a machine that slows down does so for all of them.

    Args:
        cases (`dict`): By their names, what the command line of each has behind that of this process.
        repeats (`int`): Processes per case.
    """
    runs: dict[str, list[Figures]] = {name: [] for name in cases}
    for repeat in range(repeats):
        for number, (name, options) in enumerate(cases.items(), start=1):
            start = time.perf_counter()
            command = [sys.executable, *sys.argv, "--case", name, *options]
            output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            # Whatever a library prints comes before.
            runs[name].append(json.loads(output.splitlines()[-1]))
            figures = ", ".join(f"{key} {value:,.4g}" for key, value in runs[name][-1].items())
            progress = f"{repeat + 1}/{repeats}, {number}/{len(cases)}, {time.perf_counter() - start:.0f} s"
            print(f"[{progress}] {name}: {figures}", flush=True)
    return {name: summary(figures) for name, figures in runs.items()}


def summary(runs: Sequence[Figures]) -> Figures:
    """The median of each figure; of the seconds also the least, `fastest`, which other users of the machine disturb
    least."""
    figures = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    if "seconds" in figures:
        figures["fastest"] = min(run["seconds"] for run in runs)
    return figures


def machine(packages: Sequence[str] = (), device: str = "cpu") -> str:
    """Processor, memory, perhaps GPU, and versions, in a line.

    Args:
        packages (names of modules): Whose versions matter, besides those of Python, torch and NumPy.
        device (`str`): `"cuda"` if the GPU did the work.
    """
    cpu = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    gpu = f", {torch.cuda.get_device_name()} (CUDA {torch.version.cuda})" if device == "cuda" else ""
    versions = "".join(f", {name} {importlib.import_module(name).__version__}" for name in ("numpy", *packages))
    return (
        f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GB{gpu}; Python {platform.python_version()}, "
        f"torch {torch.__version__} ({torch.get_num_threads()} threads){versions}"
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, figures to the right."""
    rules = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rules, *rows))


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def beside(script: str, name: str, device: str) -> Path:
    """Where a report goes if not told otherwise: on a GPU it is another one."""
    return Path(script).with_name(f"{name}_cuda.md" if device == "cuda" else f"{name}.md")


def write_report(path: Path, title: str, *blocks: str) -> None:
    """A Markdown file: the title, then paragraphs, lists and tables."""
    write_atomically(path, "\n\n".join([f"# {title}", *blocks]) + "\n")
