"""DCALForReID: necks, losses, and the embedding that every way of loading gives."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, ViTImageProcessor, pipeline

from dcal_hf import DCALConfig, DCALForReID
from dcal_hf.loss_dcal import batch_hard_triplet
from dcal_hf.transforms import EvalTransform, reid_processor

from helpers import noise_picture, shaken


LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
PAIRS = torch.tensor([3, 4, 5, 0, 1, 2])


def reid_model(config, **kwargs) -> DCALForReID:
    model = shaken(DCALForReID.from_backbone(config, num_labels=3, **kwargs), 0.1)
    for neck in model.dcal.necks.values():
        neck.running_mean.normal_()
        neck.running_var.uniform_(0.5, 2)
    return model


def triplet_loop(features: np.ndarray, labels: list[int]) -> float:
    """Hermans et al., equation 5 with a soft margin, anchor by anchor."""
    losses = []
    for a, anchor in enumerate(features):
        distances = [np.sqrt(((anchor - other) ** 2).sum()) for other in features]
        positives = [d for i, d in enumerate(distances) if labels[i] == labels[a] and i != a]
        negatives = [d for i, d in enumerate(distances) if labels[i] != labels[a]]
        if positives and negatives:
            losses.append(np.log1p(np.exp(max(positives) - min(negatives))))
    return float(np.mean(losses))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 5]])
def test_triplet_is_the_loop_over_anchors(labels):
    features = torch.randn(6, 8)
    loss = batch_hard_triplet(features, torch.tensor(labels))
    assert loss.item() == pytest.approx(triplet_loop(features.double().numpy(), labels), rel=1e-5)


def test_triplet_is_float32_under_autocast():
    features = torch.randn(6, 8) + 1000
    with torch.autocast("cpu", torch.bfloat16):
        loss = batch_hard_triplet(features, LABELS)
    assert loss.item() == pytest.approx(triplet_loop(features.double().numpy(), LABELS.tolist()), rel=1e-4)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_a_batch_without_anchors_costs_nothing_and_breaks_no_gradient(labels):
    features = torch.randn(3, 4, requires_grad=True)
    loss = batch_hard_triplet(features, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0 and torch.equal(features.grad, torch.zeros(3, 4))


def test_identical_images_keep_the_gradient_finite():
    features = torch.ones(4, 3, requires_grad=True)
    batch_hard_triplet(features, torch.tensor([0, 0, 1, 1])).backward()
    assert features.grad.isfinite().all()


def test_loss_is_cross_entropy_after_the_neck_plus_triplet_before_it(vit_config):
    model = reid_model(vit_config)
    pixel_values = torch.randn(6, 3, 32, 32)
    output = model(pixel_values, labels=LABELS, pair_index=PAIRS)
    features = model.dcal(pixel_values, pair_index=PAIRS)
    total = 0
    for name, weight in zip(("sa", "glca", "pwca"), model.loss_weights.log_vars):
        feature, shared = features[f"{name}_embedding"], "glca" if name == "glca" else "sa"
        neck = model.dcal.necks[shared]
        after = (feature - neck.running_mean) / (neck.running_var + neck.eps).sqrt() * neck.weight
        logits = after @ model.classifiers[shared].weight.T
        loss = -logits.log_softmax(-1)[torch.arange(6), LABELS].mean()
        loss = loss + triplet_loop(feature.detach().double().numpy(), LABELS.tolist())
        torch.testing.assert_close(output.losses[name], loss, atol=1e-4, rtol=1e-4)
        total = total + 0.5 * (torch.exp(-weight) * loss + weight)
    torch.testing.assert_close(output.loss, total, atol=1e-4, rtol=1e-4)


def test_embeddings_are_sa_and_glca_before_or_after_the_neck(vit_config):
    pixel_values = torch.randn(4, 3, 32, 32)
    for neck_feature in ("before", "after"):
        model = reid_model(vit_config, neck_feature=neck_feature, normalize_embeddings=False)
        features = model.dcal(pixel_values)
        parts = [features.sa_embedding, features.glca_embedding]
        if neck_feature == "after":
            parts = [neck(part) for neck, part in zip(model.dcal.necks.values(), parts)]
        assert torch.equal(model(pixel_values).embeddings, torch.cat(parts, dim=1))
        model.config.normalize_embeddings = True
        torch.testing.assert_close(model(pixel_values).embeddings.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("branches", [("sa",), ("glca",), ("pwca",), ("glca", "pwca"), ("sa", "glca", "pwca")])
def test_every_parameter_gets_a_gradient_and_no_neck_a_bias(vit_config, branches):
    model = DCALForReID.from_backbone(vit_config, num_labels=3, branches=branches).train()
    output = model(torch.randn(6, 3, 32, 32), LABELS, PAIRS if "pwca" in branches else None)
    output.loss.backward()
    assert set(output.losses) == set(branches)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert not [name for name, _ in model.named_parameters() if "necks" in name and "bias" in name]


def test_defaults_are_those_of_re_identification(vit_config):
    model = DCALForReID.from_backbone(vit_config, num_labels=300)
    assert model.config.local_query_ratio == 0.3 and model.config.normalize_embeddings
    weights = torch.cat([classifier.weight.flatten() for classifier in model.classifiers.values()])
    assert weights.std().item() == pytest.approx(0.001, rel=0.1)


def test_every_way_of_loading_gives_the_evaluated_vector(tmp_path, vit_config):
    model = reid_model(vit_config, neck_feature="after")
    model.save_pretrained(tmp_path)
    reid_processor(ViTImageProcessor(), (32, 32)).save_pretrained(tmp_path)
    picture = noise_picture()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixel_values = torch.stack(EvalTransform(processor)({"image": [picture]})["pixel_values"])
    expected = model(pixel_values).embeddings

    loaded = DCALForReID.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(pixel_values).embeddings, expected)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).eval()(pixel_values).embeddings, expected)
    extract = pipeline("image-feature-extraction", model=str(tmp_path), pool=True)
    assert extract(picture)[0] == pytest.approx(expected[0].tolist(), abs=1e-5)


STRANGER = """
import sys, json
sys.modules["dcal_hf"] = None
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
torch.manual_seed(7)
print(json.dumps(model(torch.randn(2, 3, 32, 32)).embeddings.tolist()))
"""


def test_a_process_without_the_package_gets_the_same_embeddings(tmp_path, monkeypatch, vit_config):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = reid_model(vit_config)
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-c", STRANGER, str(tmp_path / "model")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    torch.manual_seed(7)
    assert json.loads(run.stdout.splitlines()[-1]) == model(torch.randn(2, 3, 32, 32)).embeddings.tolist()


def test_a_missing_neck_gets_a_sentence(vit_config):
    with pytest.raises(ValueError, match="DCALForReID needs neck=True"):
        DCALForReID(DCALConfig(backbone_config=vit_config))
    with pytest.raises(ValueError, match="neck_feature='after' is unknown; choose one of before"):
        DCALConfig(backbone_config=vit_config, neck_feature="after")
