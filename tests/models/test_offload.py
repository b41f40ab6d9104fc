"""Weights that accelerate offloads to disk."""

import torch
from transformers import TimmWrapperConfig

from dcal_hf import DCALForImageClassification

from helpers import classifier, images


# A fused projection with separate biases.
FUSED_EVA = TimmWrapperConfig(
    architecture="eva02_tiny_patch14_224",
    model_args={"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8},
)


def reload_from_disk(model, folder, offloaded="dcal."):
    """Reloads the model with the modules whose names start with `offloaded` on disk.

    accelerate before 1.15 refuses to keep the whole model there.
    """
    model.save_pretrained(folder)
    parts = {"dcal.backbone", "dcal.glca", "sa_classifier", "glca_classifier", "loss_weights"}
    parts &= {name for name, _ in model.named_modules()}
    device_map = {part: "disk" if part.startswith(offloaded) else "cpu" for part in parts}
    loaded = DCALForImageClassification.from_pretrained(
        folder, device_map=device_map, offload_folder=folder / "offloaded"
    ).eval()
    assert any(parameter.is_meta for parameter in loaded.parameters())
    return loaded


def assert_same_answer(loaded, model):
    pixel_values = images()
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)
    # Nothing stays in memory.
    assert any(parameter.is_meta for parameter in loaded.parameters())


def test_offloaded_weights_give_the_same_outputs(tmp_path, any_backbone_config):
    model = classifier(any_backbone_config)
    assert_same_answer(reload_from_disk(model, tmp_path), model)


def test_only_the_backbone_is_offloaded(tmp_path, backbone_configs):
    model = classifier(backbone_configs["dinov2_with_registers"])
    assert_same_answer(reload_from_disk(model, tmp_path, "dcal.backbone"), model)


def test_fused_projections_are_offloaded(tmp_path):
    model = classifier(FUSED_EVA)
    assert_same_answer(reload_from_disk(model, tmp_path), model)
