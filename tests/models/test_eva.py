"""Tests specific to timm's EVA-02: fused projections, and the norm after timm's pooling."""

import pytest
import torch
from transformers import AutoModel, TimmWrapperConfig

from dcal_hf import DCALModel
from dcal_hf.training.lora import add_lora

from helpers import add_noise


SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": [32, 24], "patch_size": 8}


def pooled_eva(**model_args) -> DCALModel:
    """An EVA-02 as in its classification checkpoints, with a fused projection and separate biases."""
    config = TimmWrapperConfig(architecture="eva02_tiny_patch14_224", model_args={**SIZES, **model_args})
    return add_noise(DCALModel.from_backbone(config, local_query_ratio=0.3), 0.15)


def test_tokens_equal_timms():
    model, pixel_values = pooled_eva(init_values=0.5), torch.randn(2, 3, 32, 24)
    plain = AutoModel.from_config(model.config.backbone_config).eval()
    plain.load_state_dict(model.backbone.state_dict())
    tokens = plain.timm_model.fc_norm(plain.timm_model.forward_features(pixel_values))
    output = model(pixel_values)
    assert torch.equal(output.last_hidden_state, tokens)
    assert torch.equal(output.sa_embedding, tokens[:, 0])


def test_keys_and_values_equal_those_of_the_fused_projection():
    """Queries and values have biases, keys have none, and the keys of patches are rotated."""
    model = pooled_eva()
    encoder, block, tokens = model.encoder, model.encoder.blocks[-1], torch.randn(2, 13, 32)
    attention, normed = block.attn, block.norm1(tokens)
    products = (normed @ attention.qkv.weight.T).unflatten(2, (3, 4, 8))
    values = products[:, :, 2] + attention.v_bias.view(4, 8)
    (sine_cosine,) = encoder.rotary(torch.randn(2, 3, 32, 24))
    sine, cosine = sine_cosine[:, None].chunk(2, dim=2)
    # Adjacent numbers are the real and the imaginary part of a complex number that is rotated.
    numbers = torch.view_as_complex(products[:, 1:, 1].unflatten(3, (4, 2)).contiguous())
    turned = torch.view_as_real(numbers * torch.complex(cosine[..., ::2], sine[..., ::2])).flatten(3)
    keys = torch.cat([products[:, :1, 1], turned], dim=1)
    key, value = encoder.keys_values(block, tokens, (sine_cosine,))
    torch.testing.assert_close(key, keys.transpose(1, 2))
    torch.testing.assert_close(value, values.transpose(1, 2))


def test_adapters_on_the_fused_projection_affect_all_branches():
    model = pooled_eva()
    inputs = {"pixel_values": torch.randn(2, 3, 32, 24), "pairs": torch.tensor([[0, 1]])}
    lora = add_lora(model, 2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    adapted = model(**inputs)
    lora.merge_and_unload()
    merged = model(**inputs)
    for name in ("sa", "glca", "pwca"):
        torch.testing.assert_close(adapted[f"{name}_embedding"], merged[f"{name}_embedding"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "model_args"),
    [
        ("vit_base_patch16_dinov3", {}),
        ("vit_base_patch16_rope_224", {}),
        ("eva_giant_patch14_224", {"depth": 2}),
        ("eva02_enormous_patch14_clip_224", {"depth": 2}),
        ("eva02_tiny_patch14_224", {"patch_drop_rate": 0.1}),
        ("eva02_tiny_patch14_224", {"class_token": False}),
    ],
)
def test_other_architectures_of_the_same_class_are_rejected(architecture, model_args):
    with pytest.raises(ValueError, match=f"cannot use timm's '{architecture}'.*but not EVA-02's blocks"):
        DCALModel.from_backbone(TimmWrapperConfig(architecture=architecture, model_args=model_args))
