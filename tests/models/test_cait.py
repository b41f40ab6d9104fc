"""Tests specific to timm's CaiT: pairs with talking heads, and the rollout."""

import pytest
import torch
from torch import Tensor
from transformers import TimmWrapperConfig

from dcal_hf import DCALModel

from helpers import add_noise


def cait(depth: int, depth_token_only: int) -> DCALModel:
    sizes = {"embed_dim": 32, "num_heads": 4, "mlp_ratio": 2, "img_size": [32, 24], "patch_size": 8}
    depths = {"depth": depth, "depth_token_only": depth_token_only}
    config = TimmWrapperConfig(architecture="cait_xs24_384", model_args={**sizes, **depths})
    return add_noise(DCALModel.from_backbone(config, glca_readout="local"), 0.3)


def heads(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    """(B, N, D) -> (B, N, 4 or 12, 8) in float64."""
    return torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()).unflatten(2, (-1, 8))


def softmax_of_mixed(attention, query: Tensor, keys: Tensor) -> Tensor:
    """(N, H, d) and (M, H, d) -> (H, N, M)."""
    logits = torch.einsum("nhd,mhd->nmh", query, keys) * 8**-0.5
    mixed = logits @ attention.proj_l.weight.double().T + attention.proj_l.bias.double()
    return mixed.permute(2, 0, 1).softmax(dim=-1)


def test_talking_heads_share_one_softmax_over_both_images():
    model, pairs = cait(1, 1), [2, 0, 1, 3]
    block = model.encoder.blocks[0]
    attention, tokens = block.attn, torch.randn(4, 13, 32)
    paired = block(torch.cat([tokens, tokens[pairs]]), attend=model.attend, num_paired=4)
    assert torch.equal(paired[:4], block(tokens, attend=model.attend))
    query, key, value = heads(attention.qkv, block.norm1(tokens[:, 1:])).chunk(3, dim=2)
    for place, (image, other) in enumerate([(2, 0), (0, 2), (1, 3), (3, 1)]):
        keys, values = (torch.cat([x[image], x[other]]) for x in (key, value))
        softmax = softmax_of_mixed(attention, query[image], keys)
        weights = torch.einsum("gh,hnm->gnm", attention.proj_w.weight.double(), softmax)
        # The bias is added for twice as many keys.
        weights = weights + attention.proj_w.bias.double()[:, None, None] / 2
        drawn = torch.einsum("hnm,mhd->nhd", weights, values).flatten(1).float()
        expected = tokens[image, 1:] + block.gamma_1 * attention.proj(drawn)
        expected = expected + block.gamma_2 * block.mlp(block.norm2(expected))
        torch.testing.assert_close(paired[4 + place, 1:], expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(paired[4 + place, 0], tokens[image, 0])


def full_map(block, tokens: Tensor) -> Tensor:
    """The attention map of a block over [CLS, patches], (B, 1 + N, 1 + N) in float64."""
    attention, maps = block.attn, torch.eye(tokens.size(1), dtype=torch.float64).repeat(len(tokens), 1, 1)
    for image, normed in enumerate(block.norm1(tokens)):
        if hasattr(attention, "proj_l"):
            query, key, _ = heads(attention.qkv, normed[None, 1:])[0].chunk(3, dim=1)
            maps[image, 1:, 1:] = softmax_of_mixed(attention, query, key).mean(0)
        else:
            query, key = heads(attention.q, normed[None, :1])[0], heads(attention.k, normed[None])[0]
            maps[image, 0] = (torch.einsum("nhd,mhd->hnm", query, key) * 8**-0.5).softmax(-1).mean(0)[0]
    return maps


@pytest.mark.parametrize(("depth", "depth_token_only"), [(3, 1), (2, 3)])
def test_rollout_is_the_matrix_product_of_both_kinds_of_maps(depth, depth_token_only):
    model, pixel_values = cait(depth, depth_token_only), torch.randn(2, 3, 32, 24)
    tokens, rollout = model.encoder.embed(pixel_values), torch.eye(13, dtype=torch.float64)
    assert model.config.num_layers == model.config.num_pwca_blocks == depth + depth_token_only
    for block in model.encoder.blocks:
        step = full_map(block, tokens)
        torch.testing.assert_close(step.sum(dim=2), torch.ones(2, 13, dtype=torch.float64))
        rollout = (0.5 * step + 0.5 * torch.eye(13, dtype=torch.float64)) @ rollout
        tokens = block(tokens, attend=model.attend)
    output = model(pixel_values)
    torch.testing.assert_close(output.rollout.double(), rollout[:, 0, 1:], atol=1e-6, rtol=1e-4)
    assert output.rollout.shape == (2, 12) and rollout[:, 0].sum(dim=1).tolist() == pytest.approx([1, 1])


def test_half_precision_weights_run_and_select():
    model = cait(1, 1).bfloat16()
    output = model(torch.randn(2, 3, 32, 24).bfloat16(), pairs=torch.tensor([[0, 1]]))
    assert output.embeddings.isfinite().all() and output.rollout.dtype == torch.float32
