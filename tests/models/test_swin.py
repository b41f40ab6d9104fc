"""Tests specific to Swin: pairs of windows against loops, and grids smaller than a window."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, SwinConfig

from dcal_hf import DCALModel

from helpers import add_noise


SIZES = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "patch_size": 4, "mlp_ratio": 2}


def swin(image_size: tuple[int, int], window_size: int = 2, **kwargs) -> DCALModel:
    config = SwinConfig(image_size=list(image_size), window_size=window_size, **SIZES, **kwargs)
    return add_noise(DCALModel.from_backbone(config, branches=("sa", "pwca")), 0.15)


def plain_swin(model: DCALModel):
    plain = AutoModel.from_config(model.config.backbone_config, attn_implementation="sdpa").eval()
    plain.load_state_dict(model.backbone.state_dict())
    return plain


def paired_rows(block, normed: np.ndarray, partners: list[int]) -> np.ndarray:
    """Window attention of each image beside its partner, token by token, (B, rows, columns, D) -> the same.

    A token meets those of its window, a window reaching round the border after the shift, but not those it meets only
    because of that: there the distance in the image is not that in the window.
    """
    attention, (rows, columns), window, shift = block.attention, normed.shape[1:3], block.window_size, block.shift_size
    heads, width = attention.num_attention_heads, attention.head_dim
    weights = {name: p.detach().double().numpy() for name, p in attention.named_parameters()}
    table = weights["relative_position_bias.relative_position_bias_table"]
    query, key, value = (
        (normed @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]).reshape(*normed.shape[:3], heads, width)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    places = [(row, column) for row in range(rows) for column in range(columns)]
    output = np.zeros_like(query)
    for image, other in enumerate(partners):
        for row, column in places:
            moved = ((row - shift) % rows, (column - shift) % columns)
            logits, values = [], []
            for source in (image, other):
                for key_row, key_column in places:
                    key_moved = ((key_row - shift) % rows, (key_column - shift) % columns)
                    apart = (moved[0] - key_moved[0], moved[1] - key_moved[1])
                    shares_window = all(a // window == b // window for a, b in zip(moved, key_moved))
                    if shares_window and apart == (row - key_row, column - key_column):
                        bias = table[(apart[0] + window - 1) * (2 * window - 1) + apart[1] + window - 1]
                        product = (query[image, row, column] * key[source, key_row, key_column]).sum(-1)
                        logits.append(product / np.sqrt(width) + bias)
                        values.append(value[source, key_row, key_column])
            weight = np.exp(logits) / np.exp(logits).sum(0)
            output[image, row, column] = (weight[..., None] * np.stack(values)).sum(0)
    return output.reshape(normed.shape) @ weights["o_proj.weight"].T + weights["o_proj.bias"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_window_attends_to_the_same_window_of_the_other_image(number):
    """A block of the second stage without shifted windows, and one with them."""
    model, partners = swin((32, 48)), [2, 3, 0, 1]
    block = model.encoder.blocks[number]
    assert (block.shift_size, block.input_resolution, block.num_windows) == (number - 1, (4, 6), 6)
    tokens = torch.randn(4, 24, 32)
    pairs = [0, 2, 1, 3]
    output = block(torch.cat([tokens, tokens[pairs]]), attend=model.attend, num_paired=4)
    assert torch.equal(output[:4], block(tokens, attend=model.attend))
    normed = block.layernorm_before(tokens).detach().double().numpy().reshape(4, 4, 6, 32)
    expected = tokens + torch.from_numpy(paired_rows(block, normed, partners)).float().view(4, 24, 32)
    expected = expected + block.mlp(block.layernorm_after(expected))
    torch.testing.assert_close(output[4:], expected[pairs], atol=1e-5, rtol=1e-4)


def test_the_readout_is_the_mean_of_the_tokens():
    model, pixel_values = swin((32, 32)), torch.randn(2, 3, 32, 32)
    output = model(pixel_values, pairs=torch.tensor([[0, 0], [1, 1]]))
    expected = plain_swin(model)(pixel_values).pooler_output
    torch.testing.assert_close(output.sa_embedding, expected)
    torch.testing.assert_close(output.pwca_embedding, expected[[0, 0, 1, 1]])
    assert output.glca_embedding is None and output.rollout is None and output.embeddings.shape == (2, 32)


def test_noise_as_distractor():
    model, pixel_values = swin((32, 32)), torch.randn(2, 3, 32, 32)
    output = model(pixel_values, pair_noise=True)
    assert torch.equal(output.sa_embedding, model(pixel_values).sa_embedding)
    assert (output.pwca_embedding - output.sa_embedding).abs().amax(dim=1).min() > 1e-2


def test_a_grid_smaller_than_the_window_is_padded():
    """For 256 x 128 pixels, the last stage has 8 x 4 patches and windows of 7 x 7."""
    model, pixel_values = swin((32, 16), window_size=3), torch.randn(3, 3, 32, 16)
    with pytest.raises(RuntimeError, match="must match the size"):
        plain_swin(model)(pixel_values)
    plain = plain_swin(model)
    output = model(pixel_values, pairs=torch.tensor([[2, 0]]))
    assert torch.equal(output.last_hidden_state, plain(pixel_values, always_partition=True).last_hidden_state)
    itself = model(pixel_values, pairs=torch.tensor([[1, 1]]))
    torch.testing.assert_close(itself.pwca_embedding, output.sa_embedding[[1, 1]])
    assert (output.pwca_embedding - output.sa_embedding[[2, 0]]).abs().amax(dim=1).min() > 1e-2


def test_absolute_positions_are_resampled(tmp_path):
    config = SwinConfig(image_size=32, window_size=2, use_absolute_embeddings=True, **SIZES)
    plain = add_noise(AutoModel.from_config(config), 0.15)
    plain.save_pretrained(tmp_path)
    model = DCALModel.from_backbone(tmp_path, image_size=(48, 64), branches=("sa", "pwca")).eval()
    pixel_values = torch.randn(2, 3, 48, 64)
    expected = plain(pixel_values, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(model(pixel_values).last_hidden_state, expected)


def test_swin_has_no_rollout():
    with pytest.raises(ValueError, match="has no CLS token, which the rollout needs"):
        swin((32, 32))(torch.zeros(1, 3, 32, 32), output_rollout=True)
