"""Training with two processes over gloo, as `torchrun` and `accelerate launch` start them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification

from dcal_hf import DCALForImageClassification
from dcal_hf.models.validation_dcal import BRANCHES

from distributed_worker import Random, make_trainer
from helpers import branches_for, is_cait
from processes import run_script


WORKER = Path(__file__).parents[1] / "distributed_worker.py"
# SGD: the first steps of an adaptive optimiser would magnify rounding errors of the gradients.
SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "warmup_steps": 0}
SHARDED = {"fsdp": True, "fsdp_config": {"version": 2}}


def run_two(output_dir: Path, branches: str = "sa+glca+pwca", **options) -> dict:
    """Trains with two processes of batch size 4, and saves the model. Returns what the first process recorded.

    Args:
        options: As in `distributed_worker.main`.
    """
    output_dir.mkdir()
    run_script(WORKER, output_dir, branches, json.dumps(options), processes=2)
    answer = json.loads((output_dir / "answer.json").read_text())
    assert answer["world_size"] == 2 and answer["equal"]
    return answer


def assert_close_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Asserts that weights are equal up to the order of float32 sums."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6, msg=lambda text: f"{name}: {text}")


def moved(before: torch.nn.Module, after: torch.nn.Module) -> list[str]:
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    return [name for (name, first), second in pairs if not torch.equal(first, second)]


def is_trained(name: str, options: dict) -> bool:
    if ".backbone." not in name or not {"freeze_backbone", "lora_rank"} & set(options):
        return True
    return "lora_rank" in options and ".attention." in name and name.endswith("weight")


def assert_predictions(answer: dict, model: DCALForImageClassification) -> None:
    """Asserts that the predictions gathered from both processes equal those of the saved model."""
    images = torch.stack([Random(22)[index]["pixel_values"] for index in range(22)])
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(answer["logits"]), model.eval()(images).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("branches", "options"),
    [
        ("sa+glca+pwca", {"freeze_backbone": True}),
        ("sa+glca+pwca", {"lora_rank": 2}),
        ("glca", {}),
    ],
)
def test_two_processes_keep_equal_weights(tmp_path, branches, options):
    answer = run_two(tmp_path / "out", branches, **options)
    assert answer["steps"] == 4
    before = make_trainer(str(tmp_path), branches).model
    after = DCALForImageClassification.from_pretrained(tmp_path / "out")
    names = [name for name, _ in before.named_parameters()]
    assert moved(before, after) == [name for name in names if is_trained(name, options)]
    assert_predictions(answer, after)
    log = answer["log"][0]
    parts = [value for name, value in log.items() if name.startswith("loss_")]
    assert len(parts) == len(branches.split("+"))
    # At the first step all log-variances are 0, so the total is half the sum of the branch losses.
    assert log["loss"] == pytest.approx(sum(parts) / (2 if len(parts) > 1 else 1), abs=2e-3)


@pytest.mark.parametrize("options", [{}, SHARDED], ids=["ddp", "fsdp"])
def test_two_processes_train_like_one_with_the_global_batch(tmp_path, options):
    """The pairs are the same if the global batch is divided into even parts."""
    answer = run_two(tmp_path / "two", **SGD, **options)
    one = make_trainer(str(tmp_path / "one"), per_device_train_batch_size=8, **SGD)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    one.train()
    # Two blocks of the encoder, and the GLCA block.
    assert answer["sharded"].count("FSDPViTLayer") == (3 if options else 0)
    two = AutoModelForImageClassification.from_pretrained(tmp_path / "two")
    assert_close_weights(one.model.state_dict(), two.state_dict())
    # Weights change by a hundred times the tolerance, also projections that run outside a block's forward.
    matrices = {name: value for name, value in before.items() if name.endswith("proj.weight")}
    assert all((value - two.state_dict()[name]).abs().max() > 1e-4 for name, value in matrices.items())
    assert_predictions(answer, two)
    lines = [line for line in one.state.log_history if "loss" in line]
    assert [line["loss"] for line in answer["log"]] == pytest.approx([line["loss"] for line in lines], rel=1e-4)
    log_vars = [line["log_var_pwca"] for line in lines]
    assert [line["log_var_pwca"] for line in answer["log"]] == pytest.approx(log_vars, abs=2e-4) and log_vars[-1] != 0


def test_partners_satisfy_the_strategy_in_two_processes_and_after_a_resume(tmp_path):
    """16 images of 3 classes in batches of 4: two steps per epoch, resumed after the third step."""
    options = {"pair_sampling": "inter_class", "save_strategy": "steps", "save_steps": 3}
    uninterrupted = run_two(tmp_path / "uninterrupted", **options)
    checkpoint = tmp_path / "uninterrupted" / "checkpoint-3"
    resumed = run_two(tmp_path / "resumed", resume_from_checkpoint=str(checkpoint), **options)
    for steps, rest in zip(uninterrupted["pairs"], resumed["pairs"], strict=True):
        assert len(steps) == 4 and rest == steps[3:]
        assert all(len(pairs) == 2 and all(first != second for first, second in pairs) for pairs in steps)
    assert uninterrupted["pairs"][0] != uninterrupted["pairs"][1]
    assert [line["unpaired_images"] for line in uninterrupted["unpaired"]] == [0, 0]


@pytest.mark.slow
def test_sharded_training_equals_one_process_with_the_global_batch(tmp_path, any_backbone_config):
    config = any_backbone_config
    if is_cait(config):
        pytest.skip("CaiT is not sharded: see test_sharding.py.")
    branches = "+".join(branches_for(config).get("branches", BRANCHES))
    run_two(tmp_path / "two", branches, config=config.to_dict(), **SGD, **SHARDED)
    one = make_trainer(str(tmp_path / "one"), branches, config=config, per_device_train_batch_size=8, **SGD)
    one.train()
    two = AutoModelForImageClassification.from_pretrained(tmp_path / "two")
    assert_close_weights(one.model.state_dict(), two.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"bf16": True}, {"activation_checkpointing": True}, {"gradient_accumulation_steps": 2}],
    ids=str,
)
def test_sharded_runs_resume(tmp_path, options):
    # AdamW, because torch cannot load the state of an optimiser without state.
    saving = {"num_train_epochs": 4, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 2}
    options = {**SHARDED, **saving, **options}
    uninterrupted = run_two(tmp_path / "uninterrupted", **options)
    checkpoint = tmp_path / "uninterrupted" / "checkpoint-2"
    resumed = run_two(tmp_path / "resumed", resume_from_checkpoint=str(checkpoint), **options)
    assert resumed["steps"] == uninterrupted["steps"] == (4 if "gradient_accumulation_steps" in options else 8)
    first, second = (
        AutoModelForImageClassification.from_pretrained(tmp_path / name).state_dict()
        for name in ("uninterrupted", "resumed")
    )
    assert_close_weights(first, second)
    # accelerate would otherwise round the loss to bfloat16.
    one = make_trainer(str(tmp_path), per_device_train_batch_size=8, **{**options, "fsdp": None, "fsdp_config": None})
    one.train()
    losses = [line["loss"] for line in one.state.log_history if "loss" in line]
    assert [line["loss"] for line in uninterrupted["log"]] == pytest.approx(losses, rel=2e-3)


def test_an_evaluation_that_cannot_be_scored_ends_both_processes(tmp_path):
    """The first process scores. The other must not wait for its result."""
    run_script(WORKER.with_name("unscored_worker.py"), tmp_path, processes=2)
    first, second = ((tmp_path / rank).read_text() for rank in "01")
    assert first == second and "No query of 4 can be scored" in first


def test_gradient_accumulation_equals_one_batch(tmp_path):
    """The pairs are the same if the batch is divided into even parts."""
    weights = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            str(tmp_path), per_device_train_batch_size=batch, gradient_accumulation_steps=steps, **SGD
        )
        trainer.train()
        assert trainer.state.global_step == 4
        weights.append(trainer.model.state_dict())
    assert_close_weights(*weights)
