"""Fine-tuning a checkpoint with other classes keeps the weights of classes with the same name."""

import pytest
import torch

from dcal_hf import DCALForImageClassification, DCALForReID
from dcal_hf.training import set_classes

from helpers import add_noise


HEADS = {
    DCALForImageClassification: ("sa_classifier", "glca_classifier"),
    DCALForReID: ("classifiers.sa", "classifiers.glca"),
}


def named_model(model_class, config, **kwargs):
    names = dict(enumerate(["wren", "robin", "finch"]))
    return add_noise(model_class.from_backbone(config, id2label=names, **kwargs), 0.1)


@pytest.mark.parametrize("model_class", HEADS)
def test_known_classes_keep_their_rows_in_every_classifier(vit_config, model_class, tmp_path):
    model = named_model(model_class, vit_config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_classes(model, ["finch", "bunting", "wren"])
    assert model.config.label2id == {"finch": 0, "bunting": 1, "wren": 2}
    for head in HEADS[model_class]:
        rows = model.state_dict()[f"{head}.weight"]
        assert torch.equal(rows[[0, 2]], before[f"{head}.weight"][[2, 0]])
        assert not any(torch.equal(rows[1], row) for row in before[f"{head}.weight"])
        if model_class is DCALForImageClassification:
            bias = model.state_dict()[f"{head}.bias"]
            assert torch.equal(bias[[0, 2]], before[f"{head}.bias"][[2, 0]]) and bias[1] == 0
    others = [name for name in before if "classifier" not in name]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in others)
    model.save_pretrained(tmp_path)
    again, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert again.config.num_labels == 3 and not report["missing_keys"] and not report["mismatched_keys"]


@pytest.mark.parametrize("model_class", HEADS)
def test_new_classes_are_initialised_as_in_a_new_model(vit_config, model_class):
    names = ["wren", *map(str, range(400))]
    fresh = model_class.from_backbone(vit_config, num_labels=400)
    model = named_model(model_class, vit_config, branches=("glca", "pwca"))
    set_classes(model, names)
    for head in HEADS[model_class]:
        started = model.state_dict()[f"{head}.weight"][1:].std().item()
        assert started == pytest.approx(fresh.state_dict()[f"{head}.weight"].std().item(), rel=0.05)


def test_half_precision_and_a_single_branch_are_kept(vit_config):
    model = named_model(DCALForImageClassification, vit_config, branches=("sa",)).to(torch.bfloat16)
    set_classes(model, ["wren", "robin", "finch", "bunting"])
    assert model.glca_classifier is None and model.sa_classifier.weight.dtype is torch.bfloat16
    assert model.sa_classifier.weight.shape == (4, 32)
