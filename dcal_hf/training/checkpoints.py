"""The checkpoints of a run: which are its own, and which of them are whole.

A checkpoint has a manifest: the run that wrote it, and size and SHA-256 of each file. It is written before older
checkpoints are deleted, and once again when the Trainer's own state, its last file, is there.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

from accelerate.utils import broadcast_object_list
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import write_atomically
from ..integrity import checksums, find_damage


logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
# The identity of the run that an output folder belongs to. What begins with an underscore is not pushed to the Hub.
RUN_FILE = "_run.json"
LOCK_FILE = "_run.lock"


def begin_run(output_dir: str | Path, checkpoint: str | Path | None, writes: bool) -> str:
    """Makes an output folder that of a run.

    Args:
        output_dir (`str` or `Path`): The folder.
        checkpoint (`str` or `Path`, *optional*): What the run goes on from, one of [`check_resumable`].
        writes (`bool`): Whether this process is the one that writes.

    Returns:
        `str`: The run's identity, the same in all processes: a new one, or that of the run that left the checkpoint.
    """
    identity = [uuid4().hex if checkpoint is None else _read_json(Path(checkpoint, MANIFEST_FILE))["run"]]
    broadcast_object_list(identity)
    if writes:
        write_atomically(Path(output_dir, RUN_FILE), json.dumps({"run": identity[0]}) + "\n")
    return identity[0]


def write_manifest(checkpoint: str | Path, run: str) -> None:
    """Records all files of a checkpoint but the Trainer's state, which comes last."""
    files = checksums(Path(checkpoint), exclude=(MANIFEST_FILE, TRAINER_STATE_NAME))
    _save_manifest(checkpoint, {"run": run, "files": files})


def complete_manifest(checkpoint: str | Path) -> None:
    """Records the Trainer's state, too, without the path of this machine in it: `best_global_step` tells the same."""
    state_file = Path(checkpoint, TRAINER_STATE_NAME)
    state = _read_json(state_file) | {"best_model_checkpoint": None}
    write_atomically(state_file, json.dumps(state, indent=2, sort_keys=True) + "\n")
    manifest = _read_json(Path(checkpoint, MANIFEST_FILE))
    known = (MANIFEST_FILE, *manifest["files"])
    manifest["files"] |= checksums(Path(checkpoint), exclude=known)
    _save_manifest(checkpoint, manifest)


def best_checkpoint(checkpoint: str | Path, best_step: int | None) -> str | None:
    """The best checkpoint beside the one that a run goes on from, if it is still there."""
    path = Path(checkpoint).with_name(f"{PREFIX_CHECKPOINT_DIR}-{best_step}")
    return str(path) if path.is_dir() else None


def last_checkpoint(output_dir: str | Path) -> str:
    """The newest checkpoint that a run can go on from: its own, and whole.

    A warning tells which newer ones were passed over, and why.

    Raises:
        FileNotFoundError: If there is none.
    """
    output_dir = Path(output_dir)
    own = _read_json(output_dir / RUN_FILE).get("run")
    passed_over = []
    for checkpoint in _newest_first(output_dir):
        flaw = _find_flaw(checkpoint)
        if flaw is None and _read_json(checkpoint / MANIFEST_FILE)["run"] != own:
            flaw = "it is of another run"
        if flaw is None:
            if passed_over:
                logger.warning("Resuming from %s, because of %s", checkpoint, "; ".join(passed_over))
            return str(checkpoint)
        passed_over.append(f"{checkpoint.name}: {flaw}")
    found = f" ({'; '.join(passed_over)})" if passed_over else ""
    raise FileNotFoundError(
        f"No complete checkpoint in {output_dir} of the run that it belongs to{found}: start without "
        "--resume_from_checkpoint, or name a checkpoint."
    )


def check_resumable(checkpoint: str | Path, process_index: int, world_size: int) -> None:
    """
    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the checkpoint is not whole, or has no random state for this process.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"There is no checkpoint {checkpoint} to resume from; check the path.")
    flaw = _find_flaw(checkpoint)
    if flaw is not None:
        raise ValueError(
            f"{checkpoint} cannot be resumed from: {flaw}. Resume from another, or start anew with its weights alone "
            "(--model_name_or_path)."
        )
    random_state = "rng_state.pth" if world_size == 1 else f"rng_state_{process_index}.pth"
    if random_state not in _read_json(checkpoint / MANIFEST_FILE)["files"]:
        raise ValueError(
            f"{checkpoint} cannot be resumed from with {world_size} processes, for it has no {random_state}: resume "
            "with as many as wrote it."
        )


def _newest_first(output_dir: Path) -> list[Path]:
    steps = {}
    for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)
        if match is not None and path.is_dir():
            steps[path] = int(match[1])
    return sorted(steps, key=steps.get, reverse=True)


def _find_flaw(checkpoint: Path) -> str | None:
    """Why nothing can go on from a checkpoint, if so."""
    manifest = _read_json(checkpoint / MANIFEST_FILE)
    if not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("run"), str):
        return (
            f"it has no {MANIFEST_FILE}, so it is unfinished, or was saved without the optimiser's state "
            "(save_only_model)"
        )
    damage = find_damage(checkpoint, manifest["files"])
    if damage is None and not _read_json(checkpoint / TRAINER_STATE_NAME):
        return f"{TRAINER_STATE_NAME} is unfinished"
    return damage


def _read_json(path: Path) -> dict[str, Any]:
    """An empty one for a file that is missing, or is not JSON to its end."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _save_manifest(checkpoint: str | Path, manifest: dict[str, Any]) -> None:
    write_atomically(Path(checkpoint, MANIFEST_FILE), json.dumps(manifest, indent=2) + "\n")


__all__ = ["begin_run", "best_checkpoint", "check_resumable", "complete_manifest", "last_checkpoint", "write_manifest"]
