"""Encoders at their real sizes, with random weights: a training step with larger and rectangular inputs."""

import pytest
import torch
from transformers import CLIPVisionConfig, Dinov2Config, Dinov2WithRegistersConfig, DINOv3ViTConfig, TimmWrapperConfig

from dcal_hf import DCALForImageClassification


SMALL = {"hidden_size": 384, "num_attention_heads": 6}
# The sizes of facebook/dinov2-small, facebook/dinov2-with-registers-small,
# facebook/dinov3-vits16-pretrain-lvd1689m, openai/clip-vit-base-patch16,
# timm/vit_small_patch14_reg4_dinov2.lvd142m and timm/eva02_small_patch14_336.mim_in22k_ft_in1k.
ENCODERS = {
    "dinov2": Dinov2Config(image_size=518, patch_size=14, **SMALL),
    "dinov2_with_registers": Dinov2WithRegistersConfig(image_size=518, patch_size=14, **SMALL),
    "dinov3": DINOv3ViTConfig(num_register_tokens=4, intermediate_size=1536, **SMALL),
    "clip": CLIPVisionConfig(patch_size=16),
    "timm_dinov2": TimmWrapperConfig(architecture="vit_small_patch14_reg4_dinov2"),
    "timm_eva02": TimmWrapperConfig(architecture="eva02_small_patch14_336"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("rows, columns", [(32, 32), (16, 8)])
def test_training_step_at_real_size(name, rows, columns):
    """About 448 x 448 pixels for classification, about 256 x 128 for re-identification."""
    patch = 14 if "dinov2" in name or "eva02" in name else 16
    image_size = (patch * rows, patch * columns)
    # The local readout includes the rollout.
    options = {"image_size": image_size, "num_labels": 7, "glca_readout": "local"}
    model = DCALForImageClassification.from_backbone(ENCODERS[name], **options)
    images, labels, pairs = torch.randn(2, 3, *image_size), torch.tensor([0, 6]), torch.tensor([[0, 1]])
    output = model(images, labels=labels, pairs=pairs)
    output.loss.backward()
    assert output.loss.isfinite() and output.rollout.shape == (2, rows * columns)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
