"""Runs resume only from their own complete checkpoints."""

import copy
import json
import logging
import os
import re
import shutil
import socket
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from dcal_hf import DCALTrainingArguments
from dcal_hf.training import last_checkpoint
from dcal_hf.training.checkpoints import check_resumable

from distributed_worker import make_trainer
from helpers import assert_same_weights, train_until_killed


FILES = (
    "config.json", "manifest.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt",
    "trainer_state.json",
)


def saving_trainer(output_dir: Path, **options):
    return make_trainer(str(output_dir), save_strategy="steps", save_steps=2, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of 8 steps with a checkpoint every 2."""
    folder = tmp_path_factory.mktemp("run")
    saving_trainer(folder).train()
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_checkpoint_has_the_most_steps(run):
    (run / "checkpoint-10-backup").mkdir()
    (run / "checkpoint-12").write_text("not a folder")
    for step in (2, 4, 6, 8):
        (run / f"checkpoint-{step}").rename(run / f"checkpoint-{step + 3}")
    assert last_checkpoint(run) == str(run / "checkpoint-11")


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip], ids=["missing", "cut", "flipped"])
@pytest.mark.parametrize("name", FILES)
def test_incomplete_checkpoints_are_skipped_with_a_warning(run, caplog, name, damage):
    damage(run / "checkpoint-8" / name)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(run) == str(run / "checkpoint-6")
    (record,) = caplog.records
    skipped = "newer ones were skipped: checkpoint-8: "
    assert f"The newest complete checkpoint is {run / 'checkpoint-6'}; {skipped}" in record.getMessage()
    # Changing a digit in the manifest makes a file differ from its checksum.
    assert name in record.getMessage() or (name, damage) == ("manifest.json", flip)
    with pytest.raises(ValueError, match="checkpoint-8 cannot be resumed: .*Resume from another"):
        saving_trainer(run).train(resume_from_checkpoint=str(run / "checkpoint-8"))


def test_a_complete_checkpoint_causes_no_warning(run, caplog):
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(run) == str(run / "checkpoint-8")
    assert caplog.records == []


def test_a_kill_before_the_state_is_recorded_leaves_a_complete_checkpoint(run):
    manifest = json.loads((run / "checkpoint-8" / "manifest.json").read_text())
    del manifest["files"]["trainer_state.json"]
    (run / "checkpoint-8" / "manifest.json").write_text(json.dumps(manifest))
    assert last_checkpoint(run) == str(run / "checkpoint-8")
    cut(run / "checkpoint-8" / "trainer_state.json")
    assert last_checkpoint(run) == str(run / "checkpoint-6")


def test_a_run_resumes_only_from_its_own_checkpoints(run):
    """A new run starts in the folder of a finished run of 8 steps, and is killed twice."""
    train_until_killed(saving_trainer(run), 1)
    with pytest.raises(FileNotFoundError, match="No complete checkpoint in .*checkpoint-8: it belongs to another run"):
        last_checkpoint(run)
    train_until_killed(saving_trainer(run), 3)
    assert last_checkpoint(run) == str(run / "checkpoint-2")
    # After resuming, it is still the same run.
    train_until_killed(saving_trainer(run), 5, resume_from_checkpoint=True)
    assert last_checkpoint(run) == str(run / "checkpoint-4")


def test_a_run_resumed_in_another_folder_keeps_its_id(run, tmp_path):
    trainer = saving_trainer(tmp_path / "elsewhere")
    trainer.train(resume_from_checkpoint=run / "checkpoint-4")
    assert (tmp_path / "elsewhere" / "_run.json").read_bytes() == (run / "_run.json").read_bytes()
    assert last_checkpoint(tmp_path / "elsewhere") == str(tmp_path / "elsewhere" / "checkpoint-8")


@pytest.mark.parametrize("max_steps", [2, 8], ids=["in an epoch", "after one"])
def test_a_complete_run_trains_no_further_step(tmp_path, max_steps):
    first, again = (saving_trainer(tmp_path, max_steps=max_steps) for _ in range(2))
    first.train()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == max_steps
    assert_same_weights(first.model.state_dict(), again.model.state_dict())


def test_a_checkpoint_of_weights_only_cannot_be_resumed(tmp_path):
    saving_trainer(tmp_path, save_only_model=True, max_steps=2).train()
    sentence = re.escape("was saved without the optimiser's state (save_only_model)")
    with pytest.raises(FileNotFoundError, match=sentence):
        last_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        saving_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_another_number_of_processes_has_no_random_state(run):
    check_resumable(run / "checkpoint-8", 0, 1)
    with pytest.raises(ValueError, match="with 2 processes, because it has no rng_state_1.pth: use as many"):
        check_resumable(run / "checkpoint-8", 1, 2)


def test_a_missing_checkpoint_raises_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no checkpoint .*checkpoint-3 to resume from; check the"):
        saving_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    with pytest.raises(FileNotFoundError, match="No complete checkpoint in .*: start without --resume_from"):
        last_checkpoint(tmp_path / "nowhere")


def test_checkpoints_are_deleted_only_after_a_newer_one_is_complete(tmp_path, monkeypatch):
    found, original = [], shutil.rmtree

    def delete(folder, *args, **kwargs):
        if Path(folder).name.startswith("checkpoint-"):
            found.append(last_checkpoint(tmp_path))
        original(folder, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", delete)
    saving_trainer(tmp_path, save_total_limit=1).train()
    assert [Path(path).name for path in found] == [f"checkpoint-{step}" for step in (4, 6, 8)]


@pytest.mark.parametrize(
    ("limit", "with_best", "kept"), [(2, False, [6, 8]), (1, False, [8]), (2, True, [4, 8]), (1, True, [4])]
)
def test_rotation_keeps_folders_that_are_not_checkpoints(tmp_path, limit, with_best, kept):
    """transformers deletes any folder `checkpoint-*`, and in a folder `checkpoint-3` all checkpoints."""
    run = tmp_path / "checkpoint-3" / "out"
    own = ("checkpoint-best", "checkpoint-4-backup", "checkpoint-")
    for name in own:
        (run / name).mkdir(parents=True)
        os.utime(run / name, (1, 1))
    trainer = (best_trainer if with_best else saving_trainer)(run, save_total_limit=limit)
    trainer.train()
    assert {path.name for path in run.glob("checkpoint-*")} == {*own, *(f"checkpoint-{step}" for step in kept)}
    assert trainer.args.save_total_limit == limit


def best_trainer(output_dir, **options):
    options = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "score", **options}
    trainer = saving_trainer(output_dir, load_best_model_at_end=True, **options)
    trainer.compute_metrics = lambda _: {"score": {2: 0.1, 4: 0.9, 6: 0.5, 8: 0.2}[trainer.state.global_step]}
    return trainer


def test_a_moved_run_finds_its_best_checkpoint(tmp_path):
    train_until_killed(best_trainer(tmp_path / "first"), 7)
    shutil.move(tmp_path / "first", tmp_path / "second")
    trainer = best_trainer(tmp_path / "second", save_total_limit=2)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "second" / "checkpoint-4")
    saved = load_file(tmp_path / "second" / "checkpoint-4" / "model.safetensors")
    assert torch.equal(trainer.model.sa_classifier.weight, saved["sa_classifier.weight"])


@pytest.mark.parametrize("options", [{}, {"save_only_model": True}], ids=str)
def test_saved_files_contain_no_token_and_no_local_path(tmp_path, options):
    trainer = best_trainer(tmp_path, hub_token="hf_secret", max_steps=4, **options)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin", "trainer_state.json"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert b"hf_secret" not in content and str(tmp_path).encode() not in content, path
    assert trainer.args.hub_token == "hf_secret" and trainer.args.output_dir == str(tmp_path)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_of_training_arguments_keep_their_folder(tmp_path, copied):
    arguments = DCALTrainingArguments(str(tmp_path), hub_token="secret", use_cpu=True)
    assert copied(arguments) == arguments and copied(arguments).output_dir == str(tmp_path)
    assert copied(arguments).hub_token == "secret"


def test_an_uploaded_checkpoint_is_complete(tmp_path, monkeypatch):
    """With `hub_strategy="checkpoint"` each checkpoint is uploaded as `last-checkpoint`, while the run goes on."""
    uploaded = tmp_path / "uploaded"

    class Hub:
        def upload_folder(self, folder_path, path_in_repo="", **kwargs):
            if path_in_repo:
                shutil.copytree(folder_path, uploaded / path_in_repo, dirs_exist_ok=True)
            job = Future()
            job.set_result(None)
            return job

    def init_hf_repo(trainer):
        trainer.push_in_progress = None

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    monkeypatch.setattr(Trainer, "init_hf_repo", init_hf_repo)
    trainer = best_trainer(tmp_path / "run", push_to_hub=True, hub_strategy="checkpoint", max_steps=4)
    trainer.train()
    names = ("manifest.json", "trainer_state.json")
    manifest, state = (json.loads((uploaded / "last-checkpoint" / name).read_text()) for name in names)
    assert "trainer_state.json" in manifest["files"]
    assert state["best_global_step"] == 4 and state["best_model_checkpoint"] is None
    check_resumable(uploaded / "last-checkpoint", 0, 1)
    check_resumable(tmp_path / "run" / "checkpoint-4", 0, 1)


def test_a_second_run_in_the_same_folder_is_rejected(tmp_path):
    refused = []

    class SecondRun(TrainerCallback):
        def on_save(self, *args, **kwargs):
            with pytest.raises(BlockingIOError) as error:
                saving_trainer(tmp_path).train()
            refused.append(str(error.value))

    trainer = saving_trainer(tmp_path, max_steps=2)
    trainer.add_callback(SecondRun())
    trainer.train()
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    assert refused == [
        f"{tmp_path} is the output folder of a run of {holder}: wait until it ends, or give another output_dir."
    ]
    saving_trainer(tmp_path).train()
