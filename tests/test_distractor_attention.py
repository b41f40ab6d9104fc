"""The share of attention that PWCA gives to a distractor, against loops, identities and the training path."""

import numpy as np
import pytest
import torch
from conftest import BACKBONES
from transformers import AttentionInterface, ViTImageProcessor
from transformers.models.vit import modeling_vit

from dcal_hf.visualization import DistractorAttention, distractor_attention, distractor_figure, save_figure

from helpers import classifier, images, is_cait, noise_picture
from pictures import count_overlaps, gray


def softmax(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def test_the_shares_of_the_last_block_equal_a_loop(vit_config):
    model = classifier(vit_config, num_pwca_blocks=1)
    pixel_values = images()[:2]
    attention = distractor_attention(model, pixel_values)
    block = model.dcal.backbone.layers[-1]
    seen = {}
    block.attention.register_forward_pre_hook(lambda module, args: seen.update(tokens=args[0]))
    with torch.no_grad():
        model(pixel_values)
        query, key = (
            layer(seen["tokens"]).unflatten(2, (4, 8)).double().numpy()
            for layer in (block.attention.q_proj, block.attention.k_proj)
        )
    rows = [softmax(np.concatenate([*key])[:, head] @ query[0, 0, head] / 8 ** 0.5) for head in range(4)]
    row = np.mean(rows, axis=0)
    np.testing.assert_allclose(attention.shares, [row[17:].sum()], atol=1e-6)
    np.testing.assert_allclose(attention.own, [row[1:17]], atol=1e-6)
    np.testing.assert_allclose(attention.distractor, [row[18:]], atol=1e-6)
    assert attention.blocks == [2] and abs(attention.shares.item() - 0.5) > 1e-3


def test_the_shares_equal_those_of_the_training_path(vit_config):
    model = classifier(vit_config, num_pwca_blocks=2)
    pixel_values = images()[:2]
    shares = []

    def remember(module, query, key, *args, **kwargs):
        output, weights = modeling_vit.eager_attention_forward(module, query, key, *args, **kwargs)
        if key.size(2) == 2 * 17:
            shares.append(weights[0, :, 0, 17:].sum(dim=1).mean().item())
        return output, weights

    AttentionInterface.register("remember", remember)
    model.train().set_attn_implementation("remember")
    with torch.no_grad():
        model(pixel_values, pairs=torch.tensor([[0, 1]]))
    attention = distractor_attention(model, pixel_values)
    assert attention.blocks == [1, 2] and model.training
    np.testing.assert_allclose(attention.shares, shares, rtol=1e-5)


def test_the_measurement_does_not_warn_of_training_without_pairs(vit_config, monkeypatch):
    warnings = []
    monkeypatch.setattr("dcal_hf.models.modeling_dcal.logger.warning_once", warnings.append)
    distractor_attention(classifier(vit_config).train(), images()[:2])
    assert warnings == []


def test_an_image_paired_with_itself_gets_equal_shares(backbone_config):
    pixel_values = images()[:1].expand(2, -1, -1, -1)
    attention = distractor_attention(classifier(backbone_config), pixel_values)
    # In CaiT's first block, patches attend to patches only.
    assert attention.blocks == ([1, 2] if is_cait(backbone_config) else [0, 1, 2])
    torch.testing.assert_close(attention.shares, torch.full((len(attention.blocks),), 0.5))
    torch.testing.assert_close(attention.own, attention.distractor)
    assert (attention.own.sum(dim=1) < 0.5).all()


def test_unsupported_encoders_are_named(backbone_configs):
    with pytest.raises(ValueError, match="no CLS token"):
        distractor_attention(classifier(backbone_configs["swin"]), images()[:2])
    model = classifier(BACKBONES["vit"], branches=("sa",)).train()
    with pytest.raises(ValueError, match="an image and its distractor, got 4 images"):
        distractor_attention(model, images())
    with pytest.raises(ValueError, match=r"\(16, 32\) pixels, but the model takes \(32, 32\)"):
        distractor_attention(model, images(height=16)[:2])
    assert model.training


def test_both_images_have_the_same_scale(vit_config, tmp_path):
    model = classifier(vit_config)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    pair = noise_picture(0, 64, 48), noise_picture(1, 32, 48)
    attention = distractor_attention(model, processor(list(pair), return_tensors="pt")["pixel_values"])
    attention.distractor = attention.distractor * 0.0 + attention.own.mean(dim=0).min()
    figure = distractor_figure(*pair, attention, (4, 4), processor, ("a.jpg", "b.jpg"))
    image, distractor, chart = figure.axes
    assert image.get_title().startswith("a.jpg\n") and distractor.get_title().startswith("b.jpg\n")
    brightness = [np.asarray(cell.images[0].get_array()).astype(int).sum(axis=2) for cell in (image, distractor)]
    # The overlay of the distractor has the darkest colour everywhere.
    assert (brightness[1] <= 0.4 * np.asarray(pair[1]).astype(int).sum(axis=2) + 12).all()
    assert brightness[0].max() > brightness[1].max() and brightness[0].shape == (48, 64)
    np.testing.assert_allclose(chart.lines[0].get_ydata(), attention.shares)
    save_figure(figure, tmp_path / "pair.png")


@pytest.mark.parametrize("shapes", [((40, 30), (30, 40)), ((90, 10), (10, 90))])
def test_texts_of_any_length_are_inside_the_figure(shapes):
    shares = DistractorAttention([0, 1], torch.tensor([0.2, 0.4]), torch.rand(2, 16), torch.rand(2, 16))
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    titles = ("Plantae_Tracheophyta_Magnoliopsida_Taraxacum_officinale_20240101_123456.jpg", "W" * 60)
    figure = distractor_figure(*(gray(*shape) for shape in shapes), shares, (4, 4), processor, titles)
    figure.draw_without_rendering()
    *pictures, chart = figure.axes
    boxes = [part.get_window_extent() for cell in pictures for part in (cell, cell.title)] + [chart.get_tightbbox()]
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    assert count_overlaps(boxes) == 0
