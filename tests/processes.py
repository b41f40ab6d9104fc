"""Runs scripts in new processes, as `python`, `torchrun` and `accelerate launch` do.

They are forked from a process with the common imports, which would take each of them 5 s.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([f"dcal_hf.{name}" for name in ("data", "metrics", "retrieval", "training")])


@dataclass(frozen=True)
class Printed:
    """The output of the first process."""

    stdout: str
    stderr: str


def run_script(script: Path, *arguments: object, processes: int = 1) -> Printed:
    """Runs a script with a command line; several processes form a torch.distributed group.

    Raises:
        AssertionError: If a process fails, with its output. The others are killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [str(script), *map(str, arguments)]
        environments = [{}] if processes == 1 else group_environments(processes)
        logs = [Path(folder, str(rank)) for rank in range(processes)]
        workers = [
            CONTEXT.Process(target=run_in_child, args=(command, environment, log))
            for environment, log in zip(environments, logs, strict=True)
        ]
        for worker in workers:
            worker.start()
        while running := [worker for worker in workers if worker.is_alive()]:
            wait([worker.sentinel for worker in running])
            if any(worker.exitcode for worker in workers):
                for worker in running:
                    worker.kill()
        printed = [Printed(*(log.with_suffix(end).read_text() for end in (".out", ".err"))) for log in logs]
    failed = [said.stderr for worker, said in zip(workers, printed, strict=True) if worker.exitcode]
    assert not failed, "\n".join(failed)
    return printed[0]


def group_environments(processes: int) -> list[dict[str, str]]:
    """The environment variables that `torchrun` sets for each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return [
        {name: str(value) for name, value in {**group, "RANK": rank, "LOCAL_RANK": rank}.items()}
        for rank in range(processes)
    ]


def run_in_child(command: list[str], environment: dict[str, str], log: Path) -> None:
    for stream, end in ((1, ".out"), (2, ".err")):
        with open(log.with_suffix(end), "wb") as file:
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
