"""The checkpoints of a run: which belong to it, and which are complete.

Each checkpoint has a manifest with the ID of its run and the size and SHA-256 of each file. The manifest is written
after the random state, and updated after the Trainer's state, the last file, is saved. Then older checkpoints are
deleted.
"""

import json
import logging
import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import uuid4

from accelerate.utils import broadcast_object_list
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import write_atomically
from ..integrity import checksums, find_damage, locked


logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
# The ID of the run that owns an output folder. Files that begin with an underscore are not pushed to the Hub.
RUN_FILE = "_run.json"
LOCK_FILE = "_run.lock"


def lock_output_dir(output_dir: str | Path) -> AbstractContextManager[None]:
    """Locks the output folder, which must exist: two runs in one folder would delete each other's checkpoints.

    Raises:
        BlockingIOError: If another run is training in it; the message names its process and host.
    """
    return locked(
        Path(output_dir, LOCK_FILE),
        f"{output_dir} is the output folder of a run of {{holder}}: wait until it ends, or give another output_dir.",
    )


def check_unlocked(output_dir: str | Path) -> None:
    """
    Raises:
        BlockingIOError: If a run is training in the folder.
    """
    if Path(output_dir, LOCK_FILE).exists():
        with lock_output_dir(output_dir):
            pass


def begin_run(output_dir: str | Path, checkpoint: str | Path | None, writes: bool) -> str:
    """Assigns an output folder to a run.

    Args:
        output_dir (`str` or `Path`): The folder.
        checkpoint (`str` or `Path`, *optional*): The checkpoint to resume from, validated by [`check_resumable`].
        writes (`bool`): Whether this process is the one that writes.

    Returns:
        `str`: The ID of the run, the same in all processes: a new one, or that of the run that wrote the checkpoint.
    """
    identity = [uuid4().hex if checkpoint is None else _read_json(Path(checkpoint, MANIFEST_FILE))["run"]]
    broadcast_object_list(identity)
    if writes:
        write_atomically(Path(output_dir, RUN_FILE), json.dumps({"run": identity[0]}) + "\n")
    return identity[0]


def write_manifest(checkpoint: str | Path, run: str) -> None:
    """Records all files of a checkpoint except the Trainer's state, which is saved last."""
    files = checksums(Path(checkpoint), exclude=(MANIFEST_FILE, TRAINER_STATE_NAME))
    _save_manifest(checkpoint, {"run": run, "files": files})


def remove_local_path(checkpoint: str | Path) -> None:
    """Removes the path of the best checkpoint from the Trainer's state: `best_global_step` identifies it."""
    state_file = Path(checkpoint, TRAINER_STATE_NAME)
    state = _read_json(state_file) | {"best_model_checkpoint": None}
    write_atomically(state_file, json.dumps(state, indent=2, sort_keys=True) + "\n")


def complete_manifest(checkpoint: str | Path) -> None:
    """Adds the Trainer's state."""
    manifest = _read_json(Path(checkpoint, MANIFEST_FILE))
    known = (MANIFEST_FILE, *manifest["files"])
    manifest["files"] |= checksums(Path(checkpoint), exclude=known)
    _save_manifest(checkpoint, manifest)


def best_checkpoint(checkpoint: str | Path, best_step: int | None) -> str | None:
    """The path of the best checkpoint, next to the one that the run resumes from, if it still exists."""
    path = Path(checkpoint).with_name(f"{PREFIX_CHECKPOINT_DIR}-{best_step}")
    return str(path) if path.is_dir() else None


def last_checkpoint(output_dir: str | Path) -> str:
    """The newest complete checkpoint of the run that owns the folder.

    Logs a warning that lists the newer checkpoints it skipped, and why.

    Raises:
        FileNotFoundError: If there is none.
    """
    output_dir = Path(output_dir)
    own = _read_json(output_dir / RUN_FILE).get("run")
    skipped = []
    for checkpoint in checkpoint_folders(output_dir):
        flaw = _find_flaw(checkpoint)
        if flaw is None and _read_json(checkpoint / MANIFEST_FILE)["run"] != own:
            flaw = "it belongs to another run"
        if flaw is None:
            if skipped:
                message = "The newest complete checkpoint is %s; newer ones were skipped: %s"
                logger.warning(message, checkpoint, "; ".join(skipped))
            return str(checkpoint)
        skipped.append(f"{checkpoint.name}: {flaw}")
    found = f" ({'; '.join(skipped)})" if skipped else ""
    raise FileNotFoundError(
        f"No complete checkpoint in {output_dir} of the run that it belongs to{found}: start without "
        "--resume_from_checkpoint, or give the path of a checkpoint."
    )


def check_resumable(checkpoint: str | Path, process_index: int, world_size: int) -> None:
    """
    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If the checkpoint is incomplete, or has no random state for this process.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"There is no checkpoint {checkpoint} to resume from; check the path.")
    flaw = _find_flaw(checkpoint)
    if flaw is not None:
        raise ValueError(
            f"{checkpoint} cannot be resumed: {flaw}. Resume from another checkpoint, or start a new run from its "
            "weights (--model_name_or_path)."
        )
    random_state = "rng_state.pth" if world_size == 1 else f"rng_state_{process_index}.pth"
    if random_state not in _read_json(checkpoint / MANIFEST_FILE)["files"]:
        raise ValueError(
            f"{checkpoint} cannot be resumed with {world_size} processes, because it has no {random_state}: use as "
            "many processes as the run had."
        )


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """The folders `checkpoint-<step>`, newest first. Others, such as `checkpoint-best`, are not the Trainer's."""
    steps = {}
    for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)
        if match is not None and path.is_dir():
            steps[path] = int(match[1])
    return sorted(steps, key=steps.get, reverse=True)


def delete_checkpoints(output_dir: str | Path, limit: int | None, best: str | None, ended: bool = False) -> None:
    """Deletes the oldest checkpoints beyond `save_total_limit`, as transformers does, but no other folder.

    Args:
        output_dir (`str` or `Path`): The folder of the run.
        limit (`int`, *optional*): How many to keep; no limit if None or below 1.
        best (`str`, *optional*): The best checkpoint, which is kept.
        ended (`bool`): Whether the run has ended; otherwise the newest checkpoint is kept, too.
    """
    if limit is None or limit < 1:
        return
    # By time, not step: an earlier run in the same folder may have left checkpoints with more steps.
    oldest_first = sorted(reversed(checkpoint_folders(Path(output_dir))), key=lambda path: path.stat().st_mtime)
    kept = {Path(best)} if best is not None else set()
    if not (ended and kept):
        kept |= set(oldest_first[-1:])
    others = [path for path in oldest_first if path not in kept]
    for path in others[:max(len(oldest_first) - max(limit, len(kept)), 0)]:
        shutil.rmtree(path, ignore_errors=True)


def _find_flaw(checkpoint: Path) -> str | None:
    """The reason why a checkpoint cannot be resumed, or None."""
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
    """The object in a JSON file; empty if the file is missing or truncated."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _save_manifest(checkpoint: str | Path, manifest: dict[str, Any]) -> None:
    write_atomically(Path(checkpoint, MANIFEST_FILE), json.dumps(manifest, indent=2) + "\n")


__all__ = [
    "begin_run",
    "best_checkpoint",
    "check_resumable",
    "check_unlocked",
    "checkpoint_folders",
    "complete_manifest",
    "delete_checkpoints",
    "last_checkpoint",
    "lock_output_dir",
    "remove_local_path",
    "write_manifest",
]
