"""What the benchmarks share: each case in a process of its own, its peak memory, and the machine it ran on."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch


def peak_memory() -> int:
    """The process's largest resident size so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(script: str, case: str, options: dict[str, object], repeats: int) -> dict[str, float]:
    """Runs `script --case case` with the options in `repeats` processes, and returns the medians of what they print.

    Args:
        script (`str`): Its last line of output is a JSON object of figures.
        case (`str`): What to run.
        options (`dict`): More options by their names.
        repeats (`int`): How many times.
    """
    command = [sys.executable, script, "--case", case]
    command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    outputs = [subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout for _ in range(repeats)]
    runs = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def machine() -> str:
    """Processor, memory and versions, in a line."""
    cpu = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return (
        f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GB; Python {platform.python_version()}, "
        f"torch {torch.__version__} ({torch.get_num_threads()} threads), NumPy {np.__version__}"
    )
