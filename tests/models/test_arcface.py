"""Sub-centre ArcFace as the identity loss, against loops over images, classes and sub-centres."""

import math

import numpy as np
import pytest
import torch

from dcal_hf import DCALConfig, DCALForReID
from dcal_hf.models.arcface_dcal import SubCenterClassifier, add_angular_margin
from dcal_hf.models.loss_dcal import batch_hard_triplet
from dcal_hf.training import set_classes

from helpers import add_noise


LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
PAIRS = torch.tensor([[3, 0], [1, 4]])


def arcface_loop(features: np.ndarray, centers: np.ndarray, labels: list[int], margin: float, scale: float) -> float:
    """Deng et al. 2020, equation 3, with centers (C, K, D) and angles computed by arccos."""
    losses = []
    for feature, label in zip(features, labels):
        if label == -100:
            continue
        logits = []
        for number, own in enumerate(centers):
            cosines = [c @ feature / np.linalg.norm(c) / np.linalg.norm(feature) for c in own]
            angle = math.acos(np.clip(max(cosines), -1, 1))
            cosine = math.cos(angle)
            if number == label:
                falls = angle + margin < math.pi
                cosine = math.cos(angle + margin) if falls else cosine - margin * math.sin(margin)
            logits.append(scale * cosine)
        losses.append(math.log(sum(math.exp(x - logits[label]) for x in logits)))
    return float(np.mean(losses))


@pytest.mark.parametrize(("subcenters", "margin"), [(1, 0.5), (3, 0.5), (3, 1.5), (2, 0.0)])
def test_arcface_equals_the_loop(subcenters, margin):
    classifier, features = SubCenterClassifier(4, 5, subcenters, 10.0), torch.randn(40, 4)
    centers = classifier.weight.detach().double().numpy().reshape(5, subcenters, 4)
    labels = torch.arange(40) % 5
    labels[7] = -100
    # One feature is opposite to all of its sub-centres (angle above pi - m), and one equals a sub-centre.
    features[0] = -classifier.weight[:subcenters].detach().sum(dim=0)
    features[1] = classifier.weight[subcenters].detach()
    logits = add_angular_margin(classifier(features), labels, margin, 10.0)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    expected = arcface_loop(features.double().numpy(), centers, labels.tolist(), margin, 10.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_gradients_are_finite_on_and_opposite_to_a_center():
    classifier = SubCenterClassifier(4, 2, 1, 64.0)
    features = torch.cat([classifier.weight[:1], -classifier.weight[:1]]).detach().requires_grad_()
    labels = torch.tensor([0, 0])
    torch.nn.functional.cross_entropy(add_angular_margin(classifier(features), labels, 0.5, 64.0), labels).backward()
    assert features.grad.isfinite().all() and classifier.weight.grad.isfinite().all()


def test_angles_are_float32_under_autocast():
    classifier, features = SubCenterClassifier(32, 5, 2, 64.0), torch.randn(4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        half = classifier(features)
    assert half.dtype is torch.float32 and torch.equal(half, classifier(features))


def test_every_branch_uses_arcface_after_the_neck_and_the_triplet_loss(vit_config):
    fields = {"arcface_subcenters": 2, "arcface_margin": 0.3, "arcface_scale": 16}
    model = add_noise(DCALForReID.from_backbone(vit_config, num_labels=3, identity_loss="arcface", **fields), 0.1)
    pixel_values = torch.randn(6, 3, 32, 32)
    output, features = model(pixel_values, LABELS, PAIRS), model.dcal(pixel_values, pairs=PAIRS)
    for name in ("sa", "glca", "pwca"):
        feature, shared = features[f"{name}_embedding"], "glca" if name == "glca" else "sa"
        labels = LABELS[PAIRS.flatten()] if name == "pwca" else LABELS
        after = model.dcal.necks[shared](feature).detach().double().numpy()
        centers = model.classifiers[shared].weight.detach().double().numpy().reshape(3, 2, 32)
        expected = arcface_loop(after, centers, labels.tolist(), 0.3, 16)
        expected += batch_hard_triplet(feature, labels).item()
        assert output.losses[name].item() == pytest.approx(expected, rel=1e-4)
    # The logits have no margin.
    assert torch.equal(output.sa_logits, model.classifiers["sa"](model.dcal.necks["sa"](features.sa_embedding)))


def test_centers_are_saved_and_known_classes_keep_theirs(vit_config, tmp_path):
    names = {"id2label": dict(enumerate(["wren", "robin", "finch"]))}
    model = DCALForReID.from_backbone(vit_config, identity_loss="arcface", branches=("sa", "pwca"), **names)
    assert model.classifiers["sa"].weight.std().item() == pytest.approx(0.01, rel=0.2)
    output = model.train()(torch.randn(6, 3, 32, 32), LABELS, PAIRS)
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    model.save_pretrained(tmp_path)
    again, report = DCALForReID.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    before = again.classifiers["sa"].weight.detach().clone()
    assert torch.equal(before, model.classifiers["sa"].weight)
    set_classes(again, ["finch", "bunting", "wren", "owl"])
    after = again.classifiers["sa"].weight.view(4, 3, 32)
    assert torch.equal(after[[0, 2]], before.view(3, 3, 32)[[2, 0]]) and again.classifiers["sa"].num_subcenters == 3
    assert after[[1, 3]].std().item() == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"identity_loss": "cosface"}, "identity_loss='cosface' is unknown; choose one of cross_entropy, arcface"),
        ({"identity_loss": "arcface", "neck": False}, "identity_loss='arcface' needs a neck"),
        ({"arcface_subcenters": 0}, "arcface_subcenters=0 must be at least 1"),
        ({"arcface_margin": 1.6}, "arcface_margin=1.6 at least 0 and below pi / 2"),
        ({"arcface_scale": 0}, "arcface_scale=0 above 0"),
    ],
)
def test_invalid_fields_raise_clear_errors(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        DCALConfig(**{"neck": True, **fields})
