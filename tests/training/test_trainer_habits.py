"""Features of transformers' Trainer: plain arguments, a custom loss, model_init and predictions."""

import logging

import numpy as np
import pytest
import torch
from datasets import IterableDataset
from scipy.special import softmax
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTForImageClassification

from dcal_hf import DCALForImageClassification, DCALModel, DCALTrainer, DCALTrainingArguments
from dcal_hf.metrics import ClassificationMetrics
from dcal_hf.training import check_best_metric

from helpers import copy_of_weights


def plain_trainer(tmp_path, model=None, train_dataset=None, trainer_class=DCALTrainer, arguments=None, **kwargs):
    """A trainer on tensors, with two steps of eight images."""
    samples = [{"pixel_values": torch.randn(3, 32, 32), "labels": number % 3} for number in range(16)]
    options = {"per_device_train_batch_size": 8, "max_steps": 2, "use_cpu": True, "disable_tqdm": True}
    arguments = DCALTrainingArguments(str(tmp_path), save_strategy="no", **{**options, **(arguments or {})})
    dataset = samples if train_dataset is None else train_dataset
    return trainer_class(model, arguments, train_dataset=dataset, eval_dataset=dataset, **kwargs)


def test_a_custom_loss_is_applied_to_every_branch(tmp_path, vit_config):
    """Class weights of torch's cross-entropy apply to SA, GLCA and PWCA."""
    weight = torch.tensor([0.1, 1.0, 10.0])

    def weighted(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits, labels, weight=weight)

    model = DCALForImageClassification.from_backbone(vit_config, num_labels=3)
    trainer = plain_trainer(tmp_path, model, compute_loss_func=weighted)
    batch = next(iter(trainer.get_train_dataloader()))
    loss, outputs = trainer.compute_loss(model.train(), dict(batch), return_outputs=True)
    for name, value in outputs.losses.items():
        logits = outputs[f"{name}_logits"]
        labels = batch["labels"][batch["pairs"].flatten()] if name == "pwca" else batch["labels"]
        terms = -logits.log_softmax(-1)[torch.arange(len(labels)), labels] * weight[labels]
        torch.testing.assert_close(value, terms.sum() / weight[labels].sum())
    assert set(outputs.losses) == {"sa", "glca", "pwca"}
    torch.testing.assert_close(loss, sum(outputs.losses.values()) / 2)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


def test_label_smoothing_of_probabilities(tmp_path, vit_config):
    mixed = [{"pixel_values": torch.randn(3, 32, 32), "labels": torch.rand(3).softmax(0)} for _ in range(16)]
    model = DCALForImageClassification.from_backbone(vit_config, num_labels=3)
    trainer = plain_trainer(tmp_path, model, mixed, arguments={"label_smoothing_factor": 0.3})
    batch = next(iter(trainer.get_train_dataloader()))
    outputs = trainer.compute_loss(model.train(), dict(batch), return_outputs=True)[1]
    targets = batch["labels"] * 0.7 + 0.1
    expected = -(targets * outputs.sa_logits.log_softmax(-1)).sum(1).mean()
    torch.testing.assert_close(outputs.losses["sa"], expected)
    assert trainer.train().training_loss > 0


def test_probability_labels_ignore_distractors(tmp_path, vit_config):
    """A custom collator mixes only the training images; the loss of a branch is their mean."""
    samples = [{"pixel_values": torch.randn(3, 32, 32), "labels": number % 3} for number in range(8)]
    others = [{"pixel_values": torch.full((3, 32, 32), 5.0)}]

    def mix(batch):
        pixel_values = torch.stack([sample["pixel_values"] for sample in batch])
        labels = torch.eye(3)[[sample["labels"] for sample in batch]]
        mixed = {"pixel_values": pixel_values, "labels": labels}
        return {name: 0.7 * value + 0.3 * value.flip(0) for name, value in mixed.items()}

    model = DCALForImageClassification.from_backbone(vit_config, num_labels=3)
    options = {"label_smoothing_factor": 0.3}
    trainer = plain_trainer(tmp_path, model, samples, distractor_dataset=others, data_collator=mix, arguments=options)
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["pixel_values"][1::2] == 5).all() and (batch["labels"][1::2] == -100).all()
    assert batch["labels"].shape == (16, 3)
    outputs = trainer.compute_loss(model.train(), dict(batch), return_outputs=True)[1]
    targets = batch["labels"][::2] * 0.7 + 0.1
    for name, loss in outputs.losses.items():
        # PWCA's rows are in the order of the pairs (0, 1), (2, 3), ...
        expected = -(targets * outputs[f"{name}_logits"][::2].log_softmax(-1)).sum(1).mean()
        torch.testing.assert_close(loss, expected)
    assert set(outputs.losses) == {"sa", "glca", "pwca"}
    assert trainer.train().training_loss > 0

    # As in transformers, a custom loss is not smoothed.
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch: (outputs.logits * labels).sum(1).mean()
    outputs = trainer.compute_loss(model.train(), dict(batch), return_outputs=True)[1]
    torch.testing.assert_close(outputs.losses["sa"], (outputs.sa_logits * batch["labels"])[::2].sum(1).mean())


def test_plain_training_arguments_raise_a_clear_error(tmp_path, vit_config):
    model = DCALForImageClassification.from_backbone(vit_config, num_labels=3)
    with pytest.raises(TypeError, match="DCALTrainer takes DCALTrainingArguments, not TrainingArguments"):
        DCALTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True))


def test_other_models_raise_a_clear_error(tmp_path, vit_config):
    for model in (ViTForImageClassification(vit_config), DCALModel.from_backbone(vit_config)):
        sentence = f"DCALTrainer trains DCALForImageClassification or DCALForReID, not {type(model).__name__}: build"
        with pytest.raises(TypeError, match=sentence):
            plain_trainer(tmp_path, model)


class SizedStream(TorchIterableDataset):
    def __iter__(self):
        return iter([])

    def __len__(self):
        return 8


def test_training_data_must_have_a_length_and_labels(tmp_path, vit_config):
    model = DCALForImageClassification.from_backbone(vit_config, num_labels=3)
    stream = IterableDataset.from_generator(lambda: iter([{"labels": 0}]))
    for data in (stream, SizedStream()):
        sentence = f"but {type(data).__name__} is a stream: pass a data set with a length and indices"
        with pytest.raises(TypeError, match=sentence):
            plain_trainer(tmp_path, model, data)
    unlabelled = [{"pixel_values": torch.randn(3, 32, 32), "target": 0} for _ in range(8)]
    with pytest.raises(ValueError, match="Training needs labels, but a batch has only pixel_values, target: the"):
        plain_trainer(tmp_path, model, unlabelled).train()


def test_a_best_metric_that_is_not_evaluated_is_refused_before_training(tmp_path, vit_config):
    """If the metrics are known: those of a plain function are not."""
    model = DCALForImageClassification.from_backbone(vit_config, num_labels=3)

    def trainer(name, compute_metrics=ClassificationMetrics(("both", "sa")), **kwargs):
        arguments = {"eval_strategy": "epoch", "metric_for_best_model": name}
        return plain_trainer(tmp_path, model, arguments=arguments, compute_metrics=compute_metrics, **kwargs)

    with pytest.raises(ValueError, match="^metric_for_best_model='acc' is no metric of .*: it has loss, accuracy, "):
        trainer("acc").train()
    renamed = trainer("acc")
    renamed.compute_metrics = lambda prediction: {"acc": 1.0}
    for valid in (renamed, *(trainer(name) for name in ("loss", "sa_accuracy", "eval_top5_accuracy"))):
        check_best_metric(valid.args, valid.evaluation_metrics())


@pytest.mark.parametrize(
    ("option", "limit"),
    [
        ({"learning_rate": -1.0}, "at least 0"),
        ({"learning_rate": float("nan")}, "at least 0"),
        ({"per_device_train_batch_size": 0}, "at least 1"),
        ({"gradient_accumulation_steps": 0}, "at least 1"),
        ({"num_train_epochs": 0}, "above 0"),
        ({"num_train_epochs": -3.0}, "above 0"),
        ({"save_steps": -1}, "at least 0"),
        ({"max_steps": 0}, "at least 1, or -1 to train for num_train_epochs"),
    ],
)
def test_numbers_that_are_too_small_are_refused(tmp_path, option, limit):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"^{name}={value} must be {limit}.$"):
        DCALTrainingArguments(str(tmp_path), use_cpu=True, **option)


def test_a_custom_loss_must_be_a_scalar(tmp_path, vit_config):
    def per_image(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="none")

    model = DCALForImageClassification.from_backbone(vit_config, num_labels=3)
    with pytest.raises(ValueError, match=r"must return the mean loss .* but its result has the shape \(8,\)"):
        plain_trainer(tmp_path, model, compute_loss_func=per_image).train()


@pytest.mark.parametrize("option", [{"freeze_backbone": True}, {"lora_rank": 2}])
def test_model_init_keeps_frozen_backbone_and_adapters(tmp_path, vit_config, option):
    made = []

    def model_init():
        torch.manual_seed(0)
        made.append(DCALForImageClassification.from_backbone(vit_config, num_labels=3))
        return made[-1]

    trainer = plain_trainer(tmp_path, model_init=model_init, arguments={"learning_rate": 0.1, **option})
    started = copy_of_weights(model_init().dcal.backbone)
    trainer.train()
    trained = trainer.model.dcal.backbone
    assert trainer.model is made[-1] and len(made) == 3
    changed = {name for name, value in trained.state_dict().items() if not torch.equal(value, started[name])}
    if "freeze_backbone" in option:
        assert changed == set()
    else:
        assert changed and all("attention" in name and name.endswith("weight") for name in changed)


def test_predictions_are_the_logits_unless_branches_are_requested(tmp_path, vit_config):
    trainer = plain_trainer(tmp_path, DCALForImageClassification.from_backbone(vit_config, num_labels=3))
    predictions = trainer.predict(trainer.eval_dataset).predictions
    assert predictions.shape == (16, 3)
    trainer.compute_metrics = lambda prediction: {"accuracy": (prediction.predictions.argmax(axis=1) == 0).mean()}
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    trainer.compute_metrics = ClassificationMetrics(("both", "sa", "glca"))
    both, sa, glca = trainer.predict(trainer.eval_dataset).predictions
    assert np.array_equal(both, predictions)
    np.testing.assert_allclose(softmax(both, 1), (softmax(sa, 1) + softmax(glca, 1)) / 2, rtol=1e-5)
    assert {"eval_accuracy", "eval_sa_accuracy", "eval_glca_accuracy"} <= set(trainer.evaluate())
    trainer.compute_metrics = ClassificationMetrics(("both", "glca", "sa"))
    swapped = trainer.predict(trainer.eval_dataset).predictions
    assert [np.array_equal(*pair) for pair in zip(swapped, (both, glca, sa), strict=True)] == [True] * 3
    trainer.compute_metrics = None
    every = trainer.predict(trainer.eval_dataset, ignore_keys=["losses", "rollout", "local_query_indices"]).predictions
    assert [array.shape for array in every] == [(16, 3)] * 3 + [(16, 64)]


def test_metrics_of_branches_without_both(tmp_path, vit_config):
    """The logits of all branches together are then no predictions; those of one branch keep its name."""
    trainer = plain_trainer(tmp_path, DCALForImageClassification.from_backbone(vit_config, num_labels=3))
    trainer.compute_metrics = ClassificationMetrics(("both", "sa", "glca"))
    every = trainer.evaluate()
    for branches in (("sa",), ("glca",), ("glca", "sa")):
        trainer.compute_metrics = ClassificationMetrics(branches)
        metrics = {name: value for name, value in trainer.evaluate().items() if name.endswith("accuracy")}
        expected = {f"eval_{name}" for name in trainer.compute_metrics.metric_names}
        assert metrics == {name: every[name] for name in expected}
    trainer.model.config.inference_branches = ("sa",)
    trainer.compute_metrics = ClassificationMetrics(("sa", "glca"))
    with pytest.raises(ValueError, match="each of sa, glca, got 1 arrays"):
        trainer.evaluate()


def test_the_plain_trainer_warns_that_pwca_does_not_run(tmp_path, vit_config, caplog):
    model = DCALForImageClassification.from_backbone(vit_config, num_labels=3)
    trainer = plain_trainer(tmp_path, model, trainer_class=Trainer)
    logging.Logger.warning_once.cache_clear()
    trainer.train()
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (16, 3)
    (told,) = [record for record in caplog.records if "PWCA" in record.getMessage()]
    assert "DCALTrainer" in told.getMessage() and "best checkpoint" in told.getMessage()
    logging.Logger.warning_once.cache_clear()
    caplog.clear()
    plain_trainer(tmp_path, model).train()
    assert "PWCA" not in caplog.text


class StopEpochs(TrainerCallback):
    """Stops each epoch after its first step."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_epoch_stop = True


class Epochs(list):
    set_epoch = list.append


def test_an_epoch_after_one_that_was_stopped_is_the_next_one(tmp_path, vit_config):
    model = DCALForImageClassification.from_backbone(vit_config, num_labels=3)
    options = {"max_steps": -1, "num_train_epochs": 3}
    trainer = plain_trainer(tmp_path, model, arguments=options, callbacks=[StopEpochs()])
    # In one process accelerate tells the sampler and the data set, too.
    epochs = trainer.listeners["epochs"] = Epochs()
    trainer.train()
    assert epochs == [0, 1, 2] and trainer.state.global_step == 3
