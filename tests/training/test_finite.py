"""A run stops at the first non-finite step, and names its images."""

import re

import pytest
import torch
from datasets import Dataset, Image
from safetensors.torch import load_file
from transformers import TrainerCallback

from dcal_hf.training import last_checkpoint

from distributed_worker import make_trainer
from helpers import assert_same_weights


STEPS = 4  # per epoch of 16 images, in batches of 4


def poisoned_data(poisoned: int) -> Dataset:
    """Noise images, one of which is NaN."""

    def transform(batch: dict[str, list]) -> dict[str, list]:
        numbers = [int(record["path"].removesuffix(".png")) for record in batch["image"]]
        pixels = [torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(number)) for number in numbers]
        pixels = [x * torch.nan if number == poisoned else x for x, number in zip(pixels, numbers)]
        return {"pixel_values": pixels, "labels": [number % 3 for number in numbers]}

    images = Dataset.from_dict({"image": [f"{number}.png" for number in range(16)]})
    return images.cast_column("image", Image(decode=False)).with_transform(transform)


def poisoned_trainer(output_dir, poisoned=5, **options):
    options = {"save_strategy": "steps", "save_steps": 1, **options}
    trainer = make_trainer(str(output_dir), **options)
    return type(trainer)(trainer.model, trainer.args, train_dataset=poisoned_data(poisoned))


def step_of(trainer, image: int, epoch: int = 0) -> tuple[int, list[int]]:
    """The step (from 1) that contains an image, and all images of that step, according to the sampler."""
    sampler = trainer._get_train_sampler()
    sampler.set_epoch(epoch)
    size = 4 * trainer.args.gradient_accumulation_steps
    batches = torch.tensor(list(sampler)).split(size)
    (found,) = [number for number, batch in enumerate(batches, start=1) if image in batch]
    return found, batches[found - 1].tolist()


def test_the_first_non_finite_step_ends_the_run(tmp_path, caplog):
    trainer = poisoned_trainer(tmp_path)
    step, images = step_of(trainer, 5)
    assert step > 1
    with pytest.raises(FloatingPointError, match=f"step {step}, in epoch 1, are not finite: check its 4 images"):
        trainer.train()
    assert re.findall(r"(\d+)\.png", caplog.records[-1].getMessage()) == list(map(str, images))
    assert last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{step - 1}")
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.0}], ids=str)
def test_on_other_devices_the_next_checkpoint_detects_it(tmp_path, caplog, options):
    """As on a GPU: a non-finite step of the first epoch is detected in the second one."""
    trainer = poisoned_trainer(tmp_path, logging_strategy="no", save_steps=5, **options)
    trainer.checks_every_step = False
    step, images = step_of(trainer, 5)
    with pytest.raises(FloatingPointError, match=f"step {step}, in epoch 1, "):
        trainer.train()
    assert re.findall(r"(\d+)\.png", caplog.records[-1].getMessage()) == list(map(str, images))
    assert trainer.state.global_step == (5 if options != {"gradient_accumulation_steps": 2} else 4)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_next_log_detects_it(tmp_path):
    trainer = poisoned_trainer(tmp_path, logging_steps=1, save_strategy="no")
    trainer.checks_every_step = False
    step, _ = step_of(trainer, 5)
    with pytest.raises(FloatingPointError, match=f"step {step}, in epoch 1, "):
        trainer.train()
    assert trainer.state.global_step == step
    assert all(torch.tensor(line["loss"]).isfinite() for line in trainer.state.log_history if "loss" in line)


def overflowing_trainer(output_dir, step, **options):
    """The last step makes a weight infinite; its loss and gradients are finite."""
    trainer = poisoned_trainer(output_dir, poisoned=-1, max_steps=step, **options)

    class Overflow(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                trainer.model.sa_classifier.bias.data.fill_(torch.inf)

    trainer.add_callback(Overflow())
    return trainer


def test_a_checkpoint_of_non_finite_weights_does_not_replace_the_last_one(tmp_path):
    trainer = overflowing_trainer(tmp_path, 3, save_total_limit=1)
    with pytest.raises(FloatingPointError, match="The weights after step 3 have NaN or infinity in sa_classifier"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_without_checkpoints_non_finite_weights_are_detected_at_the_end(tmp_path):
    with pytest.raises(FloatingPointError, match="The weights after step 2 have NaN or infinity in sa_classifier"):
        overflowing_trainer(tmp_path, 2, save_strategy="no").train()


def test_non_finite_gradients_are_detected(tmp_path):
    trainer = poisoned_trainer(tmp_path, poisoned=-1)
    calls = iter(range(100))
    weight = trainer.model.sa_classifier.weight
    weight.register_hook(lambda grad: grad * torch.inf if next(calls) == STEPS + 1 else grad)
    with pytest.raises(FloatingPointError, match=f"step {STEPS + 2}, in epoch 2, .* resume from the last checkpoint"):
        trainer.train()
    saved = load_file(tmp_path / f"checkpoint-{STEPS + 1}" / "model.safetensors")
    assert all(value.isfinite().all() for value in saved.values())


def test_the_same_trainer_resumes_after_the_cause_is_mended(tmp_path):
    expected = poisoned_trainer(tmp_path / "whole", poisoned=-1)
    expected.train()
    trainer = poisoned_trainer(tmp_path / "broken", logging_steps=1)
    with pytest.raises(FloatingPointError):
        trainer.train()
    trainer.train_dataset.dataset = poisoned_data(-1)
    trainer.train(resume_from_checkpoint=True)
    assert_same_weights(trainer.model.state_dict(), expected.model.state_dict())
    losses = [line["loss_sa"] for line in trainer.state.log_history if "loss_sa" in line]
    assert torch.tensor(losses).isfinite().all()
