import logging
import re
from functools import partial

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from transformers import ViTImageProcessor

from dcal_hf import DCALForImageClassification, DCALTrainer, DCALTrainingArguments
from dcal_hf.training import last_checkpoint
from dcal_hf.transforms import EvalTransform, TrainTransform, fine_grained_processor

from helpers import (
    RememberSaved,
    assert_same_weights,
    copy_of_weights,
    noise_picture,
    train_until_killed,
)


PROCESSOR = fine_grained_processor(ViTImageProcessor(), (32, 32))


def pictures(count=24, seed=0) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    images = [noise_picture([seed, i], 40, 40) for i in range(count)]
    return Dataset.from_dict({"image": images, "label": [i % 3 for i in range(count)]}, features=features)


@pytest.fixture(scope="module")
def splits() -> dict[str, Dataset]:
    train = pictures().with_transform(TrainTransform(PROCESSOR, "rand-m9-mstd0.5-inc1", 0.3, 0.5))
    return {"train_dataset": train, "eval_dataset": pictures(9, seed=1).with_transform(EvalTransform(PROCESSOR))}


@pytest.fixture
def make_trainer(make_trainer, splits):
    run = {"num_train_epochs": 3, "learning_rate": 1e-3, "logging_steps": 1, "save_steps": 4}
    return partial(make_trainer, **splits, processing_class=PROCESSOR, **run)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"dataloader_num_workers": 2},
        {"gradient_accumulation_steps": 2, "save_steps": 2},
        {"pair_sampling": "half", "label_smoothing_factor": 0.1, "activation_checkpointing": True},
    ],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, make_trainer, vit_config, kwargs):
    """Killed in the middle of an epoch, with augmentation, random pairs and stochastic depth; equal bit for bit."""
    model_kwargs = {"drop_path_rate": 0.3}
    uninterrupted = make_trainer(tmp_path / "uninterrupted", vit_config, model_kwargs=model_kwargs, **kwargs)
    uninterrupted.train()

    killed_at = 9 if "gradient_accumulation_steps" not in kwargs else 5
    killed = make_trainer(tmp_path / "killed", vit_config, model_kwargs=model_kwargs, **kwargs)
    train_until_killed(killed, killed_at)
    resumed = make_trainer(tmp_path / "killed", vit_config, model_kwargs=model_kwargs, **kwargs)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "killed"))

    assert resumed.state.global_step == uninterrupted.state.global_step
    assert_same_weights(copy_of_weights(uninterrupted.model), copy_of_weights(resumed.model))


def test_the_best_checkpoint_is_restored_bit_for_bit(tmp_path, make_trainer, any_backbone_config):
    remember = RememberSaved()
    trainer = make_trainer(
        tmp_path,
        any_backbone_config,
        callbacks=[remember],
        max_steps=8,
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    scores = iter([0.1, 0.9, 0.5, 0.2])
    trainer.compute_metrics = lambda prediction: {"score": next(scores)}
    trainer.train()
    assert not torch.equal(remember.weights[4]["sa_classifier.weight"], remember.weights[8]["sa_classifier.weight"])
    assert_same_weights(copy_of_weights(trainer.model), remember.weights[4])


def test_branch_losses_are_logged_and_add_up(tmp_path, make_trainer, vit_config):
    """At the start all log-variances are 0, so the total is half the sum of the branch losses."""
    trainer = make_trainer(tmp_path, vit_config, max_steps=6, logging_steps=3, learning_rate=1e-9, save_strategy="no")
    trainer.train()
    lines = [log for log in trainer.state.log_history if "loss_sa" in log]
    assert [log["step"] for log in lines] == [3, 6]
    for log in lines:
        assert log["loss"] == pytest.approx((log["loss_sa"] + log["loss_glca"] + log["loss_pwca"]) / 2, abs=1e-3)


def test_every_epoch_logs_its_losses_whatever_logging_steps_says(tmp_path, make_trainer, vit_config):
    fine, coarse = (
        make_trainer(tmp_path, vit_config, num_train_epochs=2, logging_steps=steps, save_strategy="no")
        for steps in (1, 1000)
    )
    losses = []
    for trainer in (fine, coarse):
        trainer.train()
        losses.append([(log["loss"], log["loss_sa"]) for log in trainer.state.log_history if "loss" in log])
    epochs = np.array(losses[0]).reshape(2, -1, 2)
    assert epochs.shape[1] > 1 and np.allclose(epochs.mean(axis=1), losses[1], atol=1e-3)


def test_log_variances_are_logged(tmp_path, make_trainer, vit_config):
    learned, fixed = (
        make_trainer(
            tmp_path, vit_config, {"loss_weighting": weighting}, max_steps=2, learning_rate=0.1, save_strategy="no"
        )
        for weighting in ("uncertainty", "equal")
    )
    learned.train()
    line = [log for log in learned.state.log_history if "loss" in log][-1]
    expected = dict(zip(("sa", "glca", "pwca"), learned.model.loss_weights.log_vars.tolist()))
    assert {name: line[f"log_var_{name}"] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert all(value != 0 for value in expected.values())
    fixed.train()
    lines = [log for log in fixed.state.log_history if "loss" in log]
    assert "log_var" not in str(lines)
    for log in lines:
        assert log["loss"] == pytest.approx((log["loss_sa"] + log["loss_glca"] + log["loss_pwca"]) / 2, abs=1e-3)


def test_bfloat16_trains_like_float32_with_losses_in_float32(tmp_path, make_trainer, vit_config):
    losses, seen = [], []
    for bf16 in (False, True):
        trainer = make_trainer(tmp_path, vit_config, bf16=bf16, max_steps=6, save_strategy="no")
        # Measured inside the forward, because its outputs are converted to float32.
        trainer.model.sa_classifier.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        trainer.model.loss_weights.register_forward_hook(
            lambda module, args, total: seen.extend([*(loss.dtype for loss in args[0].values()), total.dtype])
        )
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    # Two classifiers (SA and PWCA share one), three losses and the total.
    assert seen == 6 * [torch.float32] * 6 + 6 * [torch.bfloat16, torch.bfloat16, *[torch.float32] * 4]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]


def test_logged_means_cover_gradient_accumulation(tmp_path, make_trainer, vit_config):
    trainer = make_trainer(
        tmp_path, vit_config, max_steps=2, gradient_accumulation_steps=3, learning_rate=1e-9, save_strategy="no"
    )
    trainer.train()
    lines = [log for log in trainer.state.log_history if "loss" in log]
    assert lines
    for log in lines:
        assert log["loss"] == pytest.approx((log["loss_sa"] + log["loss_glca"] + log["loss_pwca"]) / 2, abs=1e-3)


def test_only_weight_matrices_have_weight_decay(tmp_path, make_trainer, any_backbone_config):
    trainer = make_trainer(tmp_path, any_backbone_config)
    parameters = dict(trainer.model.named_parameters())
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    matrices = {
        name
        for name, parameter in parameters.items()
        if parameter.squeeze().dim() > 1 and not re.search("pos|token(?!_only)|class_emb", name)
    }
    assert decayed == matrices
    assert "loss_weights.log_vars" in parameters and "loss_weights.log_vars" not in decayed


def test_learning_rate_follows_the_total_batch(tmp_path):
    arguments = DCALTrainingArguments(
        str(tmp_path), per_device_train_batch_size=16, gradient_accumulation_steps=4, use_cpu=True
    )
    assert arguments.learning_rate == pytest.approx(5e-4 * 64 / 512)
    assert DCALTrainingArguments(str(tmp_path), learning_rate=0.3, use_cpu=True).learning_rate == 0.3


def test_cosine_schedule_with_warmup(tmp_path, make_trainer, vit_config):
    trainer = make_trainer(tmp_path, vit_config, max_steps=20, warmup_steps=0.2, learning_rate=1.0, save_strategy="no")
    trainer.create_optimizer_and_scheduler(num_training_steps=20)
    rates = []
    for _ in range(20):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    expected = [step / 4 for step in range(4)] + [0.5 * (1 + np.cos(np.pi * step / 16)) for step in range(16)]
    assert rates == pytest.approx(expected)


class Steps:
    """Records the labels and pairs of every training step."""

    def __init__(self, trainer):
        self.labels, self.pairs, self.images = [], [], []
        trainer.model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.labels.append(kwargs["labels"])
        self.pairs.append(kwargs["pairs"])
        self.images.append(len(kwargs["pixel_values"]))

    def labels_of_pairs(self) -> torch.Tensor:
        """(P, 2) over all steps."""
        return torch.cat([labels[pairs] for labels, pairs in zip(self.labels, self.pairs)])


@pytest.mark.parametrize(
    ("strategy", "same", "unpaired"),
    [("inter_class", 0, 0), ("intra_class", 12, 0), ("half", 6, 0)],
)
def test_partners_satisfy_the_strategy_over_the_epoch(tmp_path, make_trainer, vit_config, strategy, same, unpaired):
    """24 images of 3 classes, in batches of 4."""
    trainer = make_trainer(tmp_path, vit_config, pair_sampling=strategy, num_train_epochs=2, save_strategy="no")
    steps = Steps(trainer)
    trainer.train()
    for epoch in steps.labels_of_pairs().view(2, 12, 2):
        assert (epoch[:, 0] == epoch[:, 1]).sum() == same
    assert all(pairs.tolist() == [[0, 1], [2, 3]] for pairs in steps.pairs)
    logged = [log["unpaired_images"] for log in trainer.state.log_history if "unpaired_images" in log]
    assert logged == [unpaired, unpaired]


def test_images_without_a_partner_are_counted(tmp_path, make_trainer, vit_config):
    """24 images in batches of 5: one image of each batch is unpaired, none of the last batch of 4."""
    trainer = make_trainer(
        tmp_path, vit_config, per_device_train_batch_size=5, num_train_epochs=1, save_strategy="no"
    )
    steps = Steps(trainer)
    trainer.train()
    assert [(images, len(pairs)) for images, pairs in zip(steps.images, steps.pairs)] == [(5, 2)] * 4 + [(4, 2)]
    assert trainer.state.log_history[0]["unpaired_images"] == 4


def test_resuming_within_an_epoch_keeps_the_pairs(tmp_path, make_trainer, vit_config):
    arguments = {"pair_sampling": "inter_class", "save_steps": 4, "num_train_epochs": 2}
    uninterrupted = make_trainer(tmp_path / "uninterrupted", vit_config, **arguments)
    steps = Steps(uninterrupted)
    uninterrupted.train()
    killed = make_trainer(tmp_path / "killed", vit_config, **arguments)
    train_until_killed(killed, 9)
    resumed = make_trainer(tmp_path / "killed", vit_config, **arguments)
    rest = Steps(resumed)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "killed"))
    assert len(steps.labels) == 12 and len(rest.labels) == 4
    assert [x.tolist() for x in rest.labels] == [x.tolist() for x in steps.labels[8:]]
    assert (rest.labels_of_pairs()[:, 0] != rest.labels_of_pairs()[:, 1]).all()


def test_pwca_runs_for_a_fraction_of_the_pairs(tmp_path, make_trainer, vit_config):
    trainer = make_trainer(
        tmp_path, vit_config, per_device_train_batch_size=8, pwca_fraction=0.5, max_steps=1, save_strategy="no"
    )
    steps = Steps(trainer)
    trainer.train()
    assert [pairs.tolist() for pairs in steps.pairs] == [[[0, 1], [2, 3]]]
    assert trainer.state.log_history[0]["unpaired_images"] == 0


def test_a_batch_of_one_image_trains_without_pwca(tmp_path, make_trainer, vit_config):
    trainer = make_trainer(
        tmp_path, vit_config, per_device_train_batch_size=1, max_steps=2, logging_steps=2, save_strategy="no"
    )
    trainer.train()
    (line,) = [log for log in trainer.state.log_history if "loss" in log]
    assert "loss_sa" in line and "loss_pwca" not in line
    assert trainer.state.log_history[0]["unpaired_images"] == 24


def test_the_order_of_images_is_the_same_without_pwca(tmp_path, make_trainer, vit_config):
    orders = []
    for branches in (("sa",), ("sa", "glca", "pwca")):
        trainer = make_trainer(tmp_path, vit_config, model_kwargs={"branches": branches}, save_strategy="no")
        batches = [batch["pixel_values"] for batch in trainer.get_train_dataloader()]
        orders.append(torch.cat(batches))
        assert "unpaired_images" not in str(trainer.state.log_history)
    assert torch.equal(*orders)


def test_evaluation_has_no_pairs(tmp_path, make_trainer, vit_config):
    trainer = make_trainer(tmp_path, vit_config)
    assert "pairs" in next(iter(trainer.get_train_dataloader()))
    assert "pairs" not in next(iter(trainer.get_eval_dataloader()))


def test_noise_replaces_the_distractors(tmp_path, make_trainer, vit_config):
    trainer = make_trainer(tmp_path, vit_config, pair_sampling="noise", max_steps=1, save_strategy="no")
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pair_noise"]), with_kwargs=True
    )
    trainer.train()
    assert seen == [True]
    assert "loss_pwca" in trainer.state.log_history[1]


@pytest.fixture
def make_distracted_trainer(make_trainer):
    def make(*arguments, **options) -> DCALTrainer:
        plain = make_trainer(*arguments, save_strategy="no", **options)
        noise = pictures(5, seed=7).remove_columns("label").with_transform(TrainTransform(PROCESSOR))
        return DCALTrainer(plain.model, plain.args, plain.train_dataset.dataset, distractor_dataset=noise)

    return make


@pytest.mark.parametrize("options", [{}, {"remove_unused_columns": True}], ids=str)
def test_images_of_another_data_set_distract(tmp_path, make_trainer, make_distracted_trainer, vit_config, options):
    """Each distractor is added to the batch after its image; the images are the same as without distractors."""
    options = {"per_device_train_batch_size": 3, "num_train_epochs": 1, **options}
    trainer = make_distracted_trainer(tmp_path, vit_config, **options)
    plain = make_trainer(tmp_path, vit_config, per_device_train_batch_size=3)
    distracted, batches = ([*x.get_train_dataloader()] for x in (trainer, plain))
    for batch, own in zip(distracted, batches, strict=True):
        assert torch.equal(batch["pixel_values"][::2], own["pixel_values"])
        assert torch.equal(batch["labels"][::2], own["labels"]) and (batch["labels"][1::2] == -100).all()
        assert batch["pairs"].tolist() == [[0, 1], [2, 3], [4, 5]]
    drawn = torch.cat([batch["pixel_values"][1::2] for batch in distracted])
    assert len({tuple(image.flatten().tolist()) for image in drawn}) > 5
    trainer.train()
    assert trainer.state.log_history[0]["loss_pwca"] > 0
    assert not any("unpaired_images" in log for log in trainer.state.log_history)


def test_unused_distractors_raise_clear_errors(tmp_path, make_distracted_trainer, vit_config):
    with pytest.raises(ValueError, match="need PWCA, but the model has no such branch: leave them out"):
        make_distracted_trainer(tmp_path, vit_config, {"branches": ("sa",)})
    for name in ("noise", "intra_class", "half"):
        with pytest.raises(ValueError, match=f"pair_sampling='{name}' chooses other distractors than"):
            make_distracted_trainer(tmp_path, vit_config, pair_sampling=name)
    # True of images of another data set; the default in re-identification.
    make_distracted_trainer(tmp_path, vit_config, pair_sampling="inter_class")


def test_missing_class_column_raises_a_clear_error(tmp_path, vit_config):
    arguments = DCALTrainingArguments(str(tmp_path), pair_sampling="half", use_cpu=True)
    model = DCALForImageClassification.from_backbone(vit_config, num_labels=3)
    samples = [{"pixel_values": torch.zeros(3, 32, 32), "labels": 0}] * 4
    with pytest.raises(ValueError, match="pair_sampling='half' needs the class of every training image"):
        DCALTrainer(model, arguments, train_dataset=samples).train()


def test_label_smoothing_equals_torch(tmp_path, make_trainer, vit_config):
    """Only in training, also for labels that are probabilities."""
    trainer = make_trainer(tmp_path, vit_config, label_smoothing_factor=0.3, model_kwargs={"branches": ("sa",)})
    pixel_values, labels = torch.randn(5, 3, 32, 32), torch.tensor([0, 2, 1, 1, 0])
    for given in (labels, torch.nn.functional.one_hot(labels, 3).float()):
        batch = {"pixel_values": pixel_values, "labels": given}
        for is_training, epsilon in ((True, 0.3), (False, 0.0)):
            loss, output = trainer.compute_loss(trainer.model.train(is_training), batch, return_outputs=True)
            expected = torch.nn.functional.cross_entropy(output.sa_logits, labels, label_smoothing=epsilon)
            torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"pair_sampling": "other"}, "pair_sampling='other' is unknown; choose one of any, inter_class"),
        ({"pwca_fraction": 0.0}, "pwca_fraction=0.0 must be above 0 and at most 1; leave pwca out of branches"),
        ({"pwca_fraction": 1.5}, "pwca_fraction=1.5 must be above 0"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential' would separate the pairs"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches would give each process pairs of"),
    ],
)
def test_invalid_pair_options_raise_clear_errors(tmp_path, option, sentence):
    with pytest.raises(ValueError, match=sentence):
        DCALTrainingArguments(str(tmp_path), use_cpu=True, **option)


def test_several_gpus_in_one_process_are_rejected(tmp_path, vit_config):
    arguments = DCALTrainingArguments(str(tmp_path), use_cpu=True)
    arguments._n_gpu = 2
    with pytest.raises(ValueError, match="accelerate launch"):
        DCALTrainer(DCALForImageClassification.from_backbone(vit_config, num_labels=3), arguments)


def test_evaluation_reports_every_branch(tmp_path, make_trainer, vit_config, caplog):
    with caplog.at_level(logging.WARNING):
        metrics = make_trainer(tmp_path, vit_config).evaluate()
    names = ("accuracy", "top5_accuracy", "class_mean_accuracy")
    assert {f"eval_{branch}{name}" for branch in ("", "sa_", "glca_") for name in names} <= set(metrics)
    assert caplog.records == []


def test_evaluation_includes_all_images(tmp_path, make_trainer, vit_config):
    """9 evaluation images in batches of 4; training drops 4 of its 24 images in batches of 5."""
    options = {"dataloader_drop_last": True, "per_device_eval_batch_size": 4, "per_device_train_batch_size": 5}
    trainer = make_trainer(tmp_path, vit_config, **options)
    assert len(trainer.predict(trainer.eval_dataset).label_ids) == 9
    assert [len(batch["labels"]) for batch in trainer.get_train_dataloader()] == [5] * 4
    assert trainer.args.dataloader_drop_last
