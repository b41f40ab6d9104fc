import copy

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from transformers import AutoModel

from dcal_hf.models.positions_dcal import resize_positions
from dcal_hf.models.stochastic_depth_dcal import StochasticDepth

from helpers import branches_for, classifier, images, is_cait


def test_resizing_positions_keeps_prefix_and_linear_ramps():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    table = torch.cat([torch.full((2, 2), 99.0), torch.stack([rows, columns], dim=-1).flatten(0, 1)])[None]
    resized = resize_positions(table, (8, 8), (16, 4))
    assert resized.shape == (1, 2 + 16 * 4, 2)
    assert torch.equal(resized[:, :2], table[:, :2])
    ramp = resized[0, 2:].view(16, 4, 2)
    # Away from the border, bicubic interpolation keeps a linear ramp (up to 0.05).
    torch.testing.assert_close(ramp[4:12, 1, 0], (torch.arange(4, 12) + 0.5) / 2 - 0.5, atol=0.05, rtol=0)
    torch.testing.assert_close(ramp[8, 1:3, 1], torch.tensor([2.5, 4.5]), atol=0.05, rtol=0)


def test_resizing_positions_without_prefix():
    table = torch.randn(1, 16, 3)
    with_prefix = resize_positions(torch.cat([torch.zeros(1, 1, 3), table], dim=1), (4, 4), (2, 6))
    assert torch.equal(resize_positions(table, (4, 4), (2, 6)), with_prefix[:, 1:])


def test_resizing_to_the_same_grid_changes_nothing():
    table = torch.randn(1, 17, 3)
    assert torch.equal(resize_positions(table, (4, 4), (4, 4)), table)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    module = nn.Identity()
    module.register_forward_hook(StochasticDepth(0.25))
    dropped = module(torch.ones(4000, 3, 2))
    kept = dropped.flatten(1)
    assert ((kept == 0).all(1) | torch.isclose(kept, torch.tensor(4 / 3)).all(1)).all()
    assert 0.2 < (kept == 0).all(1).float().mean() < 0.3
    assert torch.equal(module.eval()(torch.ones(4, 3)), torch.ones(4, 3))


def test_mask_tokens_are_saved_but_not_trained(any_backbone_config):
    from dcal_hf import DCALModel

    plain = AutoModel.from_config(any_backbone_config)
    backbone = DCALModel.from_backbone(any_backbone_config, **branches_for(any_backbone_config)).backbone
    expected = {name for name in plain.state_dict() if not name.startswith("pooler.")}
    assert set(backbone.state_dict()) == expected
    assert not [name for name, _ in backbone.named_parameters() if "mask_token" in name]


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_stochastic_depth_rates_increase_linearly(any_backbone_config, rate):
    from dcal_hf import DCALModel

    model = DCALModel.from_backbone(any_backbone_config, drop_path_rate=rate, **branches_for(any_backbone_config))
    blocks = [*model.encoder.blocks, *([] if model.glca is None else model.glca.blocks)]
    if any_backbone_config.model_type == "timm_wrapper":
        rates = [part.drop_prob for block in blocks for part in block.modules() if isinstance(part, DropPath)]
    else:
        hooks = [part._forward_hooks.values() for block in blocks for part in block.modules()]
        rates = [hook.rate for part in hooks for hook in part]
    expected = [0.25, 0.25, 0.5, 0.5] + ([] if model.glca is None else [0.5, 0.5])
    if is_cait(any_backbone_config):
        # timm's CaiT has the same rate in each block, and none in class attention, which GLCA copies.
        expected = [0.5]
    assert rates == ([] if rate == 0 else expected)


@pytest.mark.parametrize("name", ["dinov2", "dinov2_with_registers", "dinov3_vit", "swin"])
def test_dcals_rate_replaces_the_encoders_stochastic_depth(backbone_configs, name):
    """At a rate of 0 nothing is dropped, whatever the encoder's own rate is."""
    config = copy.deepcopy(backbone_configs[name])
    config.drop_path_rate = 0.9
    if name == "dinov3_vit":
        # Its positions are augmented at random in training.
        config.pos_embed_rescale = None
    model, pixel_values = classifier(config), images()
    evaluated = model(pixel_values).sa_logits
    torch.testing.assert_close(model.train()(pixel_values).sa_logits, evaluated)
    assert config.drop_path_rate == model.config.backbone_config.drop_path_rate == 0.9
