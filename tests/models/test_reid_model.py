"""DCALForReID: necks, losses and embeddings."""

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, ViTImageProcessor, pipeline

from dcal_hf import DCALConfig, DCALForReID
from dcal_hf.models.loss_dcal import batch_hard_triplet
from dcal_hf.models.neck_dcal import Neck
from dcal_hf.transforms import EvalTransform, reid_processor

from helpers import add_noise, assert_same_weights, copy_of_weights, noise_picture


LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
PAIRS = torch.tensor([[3, 0], [1, 4]])


def reid_model(config, **kwargs) -> DCALForReID:
    model = add_noise(DCALForReID.from_backbone(config, num_labels=3, **kwargs), 0.1)
    for neck in model.dcal.necks.values():
        neck.running_mean.normal_()
        neck.running_var.uniform_(0.5, 2)
    return model


def triplet_loop(features: np.ndarray, labels: list[int]) -> float:
    """Hermans et al., equation 5 with a soft margin, as a loop over anchors."""
    losses = []
    for a, anchor in enumerate(features):
        distances = [np.sqrt(((anchor - other) ** 2).sum()) for other in features]
        positives = [d for i, d in enumerate(distances) if labels[i] == labels[a] and i != a]
        negatives = [d for i, d in enumerate(distances) if labels[i] != labels[a]]
        if positives and negatives:
            losses.append(np.log1p(np.exp(max(positives) - min(negatives))))
    return float(np.mean(losses))


def test_triplets_ignore_images_without_label():
    features, labels = torch.randn(6, 8), torch.tensor([0, -100, 0, 1, -100, 1])
    counted = labels >= 0
    expected = triplet_loop(features[counted].double().numpy(), labels[counted].tolist())
    assert batch_hard_triplet(features, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 5]])
def test_triplet_loss_equals_the_loop_over_anchors(labels):
    features = torch.randn(6, 8)
    loss = batch_hard_triplet(features, torch.tensor(labels))
    assert loss.item() == pytest.approx(triplet_loop(features.double().numpy(), labels), rel=1e-5)


def test_triplet_is_float32_under_autocast():
    features = torch.randn(6, 8) + 1000
    with torch.autocast("cpu", torch.bfloat16):
        loss = batch_hard_triplet(features, LABELS)
    assert loss.item() == pytest.approx(triplet_loop(features.double().numpy(), LABELS.tolist()), rel=1e-4)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_a_batch_without_anchors_has_zero_loss_and_finite_gradients(labels):
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
    output = model(pixel_values, labels=LABELS, pairs=PAIRS)
    features = model.dcal(pixel_values, pairs=PAIRS)
    total = 0
    for name, weight in zip(("sa", "glca", "pwca"), model.loss_weights.log_vars):
        feature, shared = features[f"{name}_embedding"], "glca" if name == "glca" else "sa"
        neck = model.dcal.necks[shared]
        after = (feature - neck.running_mean) / (neck.running_var + neck.eps).sqrt() * neck.weight
        logits = after @ model.classifiers[shared].weight.T
        labels = LABELS[[3, 0, 1, 4]] if name == "pwca" else LABELS
        loss = -logits.log_softmax(-1)[torch.arange(len(labels)), labels].mean()
        loss = loss + triplet_loop(feature.detach().double().numpy(), labels.tolist())
        torch.testing.assert_close(output.losses[name], loss, atol=1e-4, rtol=1e-4)
        total = total + 0.5 * (torch.exp(-weight) * loss + weight)
    torch.testing.assert_close(output.loss, total, atol=1e-4, rtol=1e-4)


def test_running_statistics_include_only_the_sa_branch(vit_config):
    """PWCA's features pass through the same neck, but do not update its running statistics."""
    model, pixel_values = reid_model(vit_config).train(), torch.randn(6, 3, 32, 32)
    reference = torch.nn.BatchNorm1d(32)
    reference.load_state_dict(model.dcal.necks["sa"].state_dict())
    reference(model.dcal(pixel_values).sa_embedding)
    model(pixel_values, LABELS, PAIRS)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.dcal.necks["sa"].state_dict()[name], value)


def test_the_neck_equals_batch_norm_over_the_counted_images():
    neck, reference = Neck(8).train(), torch.nn.BatchNorm1d(8).train()
    with torch.no_grad():
        reference.weight.copy_(neck.weight.normal_())
    features, counted = torch.randn(6, 8, requires_grad=True), torch.tensor([True, True, False, True, False, True])
    again = features.detach().clone().requires_grad_()
    found, expected = neck(features, counted)[counted], reference(again[counted])
    torch.testing.assert_close(found, expected)
    weights = torch.randn(4, 8)
    for output in (found, expected):
        (output * weights).sum().backward()
    torch.testing.assert_close(features.grad, again.grad)
    torch.testing.assert_close(neck.running_var, reference.running_var)
    before = neck.running_mean.clone()
    neck(features, counted, update_stats=False)
    assert torch.equal(neck.running_mean, before) and neck.num_batches_tracked == 1


def test_a_batch_without_counted_images_keeps_the_running_statistics():
    neck = Neck(8).train()
    neck(torch.randn(4, 8), torch.ones(4, dtype=torch.bool))
    before = copy_of_weights(neck)
    assert neck(torch.randn(4, 8), torch.zeros(4, dtype=torch.bool)).isfinite().all()
    assert_same_weights(copy_of_weights(neck), before)


def test_losses_ignore_distractors(vit_config):
    """Each image is followed by one without a label, which the losses of SA and GLCA ignore."""
    model, pixel_values = reid_model(vit_config).train(), torch.randn(12, 3, 32, 32)
    labels = torch.stack([LABELS, torch.full_like(LABELS, -100)], dim=1).flatten()
    pairs = torch.arange(12).view(6, 2)
    output = model(pixel_values, labels, pairs)
    alone = model(pixel_values[::2], LABELS, torch.tensor([[0, 1]]))
    for name in ("sa", "glca"):
        torch.testing.assert_close(output.losses[name], alone.losses[name], atol=1e-4, rtol=1e-4)
    changed = model(torch.where(labels.view(-1, 1, 1, 1) < 0, 0.5, pixel_values), labels, pairs)
    torch.testing.assert_close(changed.losses["sa"], output.losses["sa"], atol=1e-4, rtol=1e-4)
    assert (changed.losses["pwca"] - output.losses["pwca"]).abs() > 1e-3


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
def test_every_parameter_gets_a_gradient_and_necks_have_no_bias(vit_config, branches):
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


def test_all_ways_of_loading_give_the_same_embedding(tmp_path, vit_config):
    model = reid_model(vit_config, neck_feature="after")
    model.save_pretrained(tmp_path)
    reid_processor(ViTImageProcessor(), (32, 32)).save_pretrained(tmp_path)
    picture = noise_picture()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixel_values = torch.stack(EvalTransform(processor)({"image": [picture]})["pixel_values"])
    expected = model(pixel_values).embeddings

    # The last digit of a product with one row (the CLS query of one image) depends on the alignment of the weights.
    for auto_class in (DCALForReID, AutoModel):
        loaded = auto_class.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded(pixel_values).embeddings, expected, rtol=0, atol=1e-7)
    extract = pipeline("image-feature-extraction", model=str(tmp_path), pool=True)
    assert extract(picture)[0] == pytest.approx(expected[0].tolist(), abs=1e-5)


def test_a_single_identity_is_rejected(vit_config):
    with pytest.raises(ValueError, match="at least two training identities, got num_labels=1"):
        DCALForReID.from_backbone(vit_config, num_labels=1)


def test_a_missing_neck_raises_a_clear_error(vit_config):
    with pytest.raises(ValueError, match="DCALForReID needs neck=True"):
        DCALForReID(DCALConfig(backbone_config=vit_config))
    with pytest.raises(ValueError, match="neck_feature='after' needs a neck"):
        DCALConfig(backbone_config=vit_config, neck_feature="after")
