"""Class weights and logit adjustment, against loops over images and classes."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import HfArgumentParser

from dcal_hf import DCALForImageClassification, DCALReIDTrainingArguments, DCALTrainer, DCALTrainingArguments
from dcal_hf.training.class_balance import BalancedCrossEntropy, balanced_weights, count_classes, logit_shift


NAMES = ["wren", "robin", "finch"]
LABELS = [0] * 9 + [1] * 4 + [2] * 3


def loss_loop(logits: np.ndarray, labels: list[int], weight, shift, smoothing: float = 0.0) -> float:
    """Weighted mean of `-log softmax(f + shift)_y`; smoothing adds an equal share of every class's weighted term."""
    total, weights = 0.0, 0.0
    for row, label in zip(logits + shift, labels):
        if label == -100:
            continue
        logs = [x - math.log(sum(math.exp(y) for y in row)) for x in row]
        smooth = -sum(w * log for w, log in zip(weight, logs)) / len(row)
        total += -(1 - smoothing) * weight[label] * logs[label] + smoothing * smooth
        weights += weight[label]
    return total / weights


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 7.0]])
@pytest.mark.parametrize("shift", [None, [-0.1, -2.0, -4.0]])
def test_the_loss_equals_the_loop(weight, shift, smoothing):
    logits, labels = torch.randn(8, 3), torch.tensor([0, 1, 2, -100, 2, 0, 1, 0])
    loss = BalancedCrossEntropy(*(None if x is None else torch.tensor(x) for x in (weight, shift)), smoothing)
    expected = loss_loop(logits.double().numpy(), labels.tolist(), weight or [1.0] * 3, shift or [0.0] * 3, smoothing)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_balanced_weights_give_every_class_the_same_total():
    labels = np.array([*LABELS, -100])
    weights = balanced_weights(count_classes(labels, 3)).numpy()
    shares = [sum(weights[label] for label in LABELS if label == number) for number in range(3)]
    assert shares == pytest.approx([16 / 3] * 3)
    # A class without images has the weight of a class with one image.
    assert count_classes(labels, 4).tolist() == [9, 4, 3, 1]
    assert balanced_weights(count_classes(labels, 4)).isfinite().all()


def test_adjusted_logits_without_information_favour_no_class():
    """The plain loss is minimal if constant logits are the log frequencies, the adjusted one if they are equal."""
    shift = logit_shift(count_classes(np.array(LABELS), 3), 1.0)
    assert shift.exp().tolist() == pytest.approx([9 / 16, 4 / 16, 3 / 16])
    logits = torch.zeros(3, requires_grad=True)
    BalancedCrossEntropy(None, shift, 0.0)(logits.expand(16, 3), torch.tensor(LABELS)).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3))


def balanced_trainer(tmp_path, config, trained_on=None, **options) -> DCALTrainer:
    names = dict(enumerate(NAMES))
    model = DCALForImageClassification.from_backbone(config, id2label=names)
    dataset = Dataset.from_dict({"label": LABELS}).with_transform(
        lambda batch: {"pixel_values": list(torch.randn(len(batch["label"]), 3, 32, 32)), "labels": batch["label"]}
    )
    func = options.pop("compute_loss_func", None)
    arguments = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": 1, **options}
    return DCALTrainer(
        model,
        DCALTrainingArguments(str(tmp_path), **arguments),
        train_dataset=dataset if trained_on is None else trained_on,
        compute_loss_func=func,
    )


@pytest.mark.parametrize(
    ("options", "weight", "shift"),
    [
        ({"class_weights": "balanced"}, [16 / 27, 16 / 12, 16 / 9], [0.0] * 3),
        ({"class_weights": {"robin": 3}, "label_smoothing_factor": 0.1}, [1, 3, 1], [0.0] * 3),
        ({"logit_adjustment": 2.0}, [1.0] * 3, [2 * math.log(count / 16) for count in (9, 4, 3)]),
    ],
)
def test_branches_are_balanced_only_in_training(tmp_path, vit_config, options, weight, shift):
    trainer = balanced_trainer(tmp_path, vit_config, **options)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    _, outputs = trainer.compute_loss(trainer.model.train(), batch, return_outputs=True)
    assert set(outputs.losses) == {"sa", "glca", "pwca"}
    for name, loss in outputs.losses.items():
        labels = batch["labels"][batch["pairs"].flatten()] if name == "pwca" else batch["labels"]
        logits = outputs[f"{name}_logits"].detach().double().numpy()
        smoothing = options.get("label_smoothing_factor", 0.0)
        assert loss.item() == pytest.approx(loss_loop(logits, labels.tolist(), weight, shift, smoothing), rel=1e-4)
    del batch["pairs"]
    _, outputs = trainer.compute_loss(trainer.model.eval(), batch, return_outputs=True)
    plain = torch.nn.functional.cross_entropy(outputs.sa_logits, batch["labels"])
    torch.testing.assert_close(outputs.losses["sa"], plain)


def test_the_command_line_takes_weights_by_name_as_json(tmp_path):
    parser = HfArgumentParser((DCALTrainingArguments,))
    command = ["--output_dir", str(tmp_path), "--use_cpu", "--class_weights"]
    assert parser.parse_args_into_dataclasses([*command, "balanced"])[0].class_weights == "balanced"
    (arguments,) = parser.parse_args_into_dataclasses([*command, '{"robin": 2, "1": 0.5}'])
    assert arguments.class_weights == {"robin": 2, "1": 0.5}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"class_weights": "balance"}, "class_weights='balance' must be 'balanced' or weights by the names"),
        ({"class_weights": "{robin: 2}"}, "class_weights='{robin: 2}' is no JSON .*such as {\"robin\": 2.0}"),
        ({"class_weights": {"robin": 0}}, "class_weights gives 'robin' the weight 0: it must be a number above 0"),
        ({"class_weights": {"owl": 2.0}}, "class_weights names 'owl', which is no class: the classes are wren, robin"),
        ({"logit_adjustment": -1.0}, "logit_adjustment=-1.0 must be at least 0"),
        ({"logit_adjustment": 1.0, "compute_loss_func": print}, "compute_loss_func replaces the loss"),
        ({"class_weights": "balanced", "trained_on": [{}]}, "class_weights='balanced' needs the class of every"),
    ],
)
def test_invalid_options_raise_clear_errors(tmp_path, vit_config, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        balanced_trainer(tmp_path, vit_config, **options)


def test_re_identification_rejects_class_weights(tmp_path):
    with pytest.raises(ValueError, match="leave out class_weights and logit_adjustment"):
        DCALReIDTrainingArguments(str(tmp_path), use_cpu=True, logit_adjustment=1.0)
