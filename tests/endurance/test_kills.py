"""Real kills of both recipes at random moments: the run that goes on ends with the weights of an uninterrupted one."""

import os
import signal
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from dcal_hf.training import last_checkpoint

from helpers import TINY_VIT, assert_same_weights
from processes import CONTEXT, run_in_child


RECIPES = Path(__file__).parents[2] / "recipes"
SEED = int(os.environ.get("DCAL_FUZZ_SEED", 0))
KILLS = 10
OPTIONS = {
    "backbone_config": TINY_VIT,
    "image_size": 16,
    "local_query_ratio": 0.5,
    "per_device_train_batch_size": 4,
    "max_steps": 40,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 3,
    "learning_rate": 1e-3,
    "do_train": True,
    "use_cpu": True,
    "disable_tqdm": True,
}
OF_RECIPE = {"run_fgvc": {"attention_images": 0}, "run_reid": {"instances_per_identity": 2, "ranked_queries": 0}}


def write_images(folder: Path) -> None:
    """Noise of eight classes or individuals."""
    for name in range(8):
        for number in range(4):
            path = folder / str(name) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng([name, number]).integers(0, 256, (18, 18, 3), np.uint8)).save(path)


def start(recipe: str, tmp_path: Path, output_dir: Path, *arguments: str):
    """Starts a recipe in a process of its own."""
    config = tmp_path / f"{output_dir.name}.yaml"
    options = {**OPTIONS, **OF_RECIPE[recipe], "data_dir": str(tmp_path / "images"), "output_dir": str(output_dir)}
    config.write_text(yaml.safe_dump(options))
    command = [str(RECIPES / f"{recipe}.py"), str(config), *arguments]
    process = CONTEXT.Process(target=run_in_child, args=(command, {}, tmp_path / output_dir.name))
    process.start()
    return process


def newest_step(output_dir: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in output_dir.glob("checkpoint-*")), default=0)


def go_on(output_dir: Path) -> list[str]:
    """The arguments with which a killed run goes on, or starts again if it has no whole checkpoint yet."""
    try:
        last_checkpoint(output_dir)
    except FileNotFoundError:
        return ["--overwrite_output_dir"]
    return ["--resume_from_checkpoint", "last"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OF_RECIPE)
def test_a_run_that_is_killed_ten_times_ends_with_the_same_weights(tmp_path, recipe, tell):
    write_images(tmp_path / "images")
    whole = start(recipe, tmp_path, tmp_path / "whole")
    rng, killed, steps = Random(f"{SEED} {recipe}"), tmp_path / "killed", []
    for _ in range(KILLS):
        process = start(recipe, tmp_path, killed, *go_on(killed))
        goal, deadline = newest_step(killed) + rng.randint(0, 3), time.monotonic() + 300
        while newest_step(killed) < goal and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        # A step, with its checkpoint, takes about as long.
        time.sleep(rng.uniform(0, 0.2) if goal else rng.uniform(0, 5))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "killed.err").read_text()
        steps.append(newest_step(killed))
    for process in (start(recipe, tmp_path, killed, *go_on(killed)), whole):
        process.join()
        assert process.exitcode == 0, (tmp_path / "killed.err").read_text() + (tmp_path / "whole.err").read_text()
    assert_same_weights(load_file(tmp_path / "whole" / "model.safetensors"), load_file(killed / "model.safetensors"))
    tell(f"kill -9 of {recipe}, seed {SEED}", f"{KILLS} kills, at steps {steps}", "weights equal bit for bit")
