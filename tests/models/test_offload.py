"""Weights that accelerate keeps on the disk."""

import pytest
import torch

from dcal_hf import DCALForImageClassification

from helpers import classifier, images


@pytest.mark.parametrize("family", ["vit", "deit", "dinov3_vit", "swin"])
@pytest.mark.parametrize("offloaded", ["", "dcal.backbone"])
def test_weights_on_the_disk_give_the_same_answer(tmp_path, backbone_configs, family, offloaded):
    model, pixel_values = classifier(backbone_configs[family]), images()
    model.save_pretrained(tmp_path)
    parts = {"dcal.backbone", "dcal.glca", "sa_classifier", "glca_classifier", "loss_weights"}
    parts &= {name for name, _ in model.named_modules()}
    device_map = {part: "disk" if part.startswith(offloaded) else "cpu" for part in parts}
    loaded = DCALForImageClassification.from_pretrained(
        tmp_path, device_map=device_map, offload_folder=tmp_path / "offloaded"
    ).eval()
    assert any(parameter.is_meta for parameter in loaded.parameters())
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)
