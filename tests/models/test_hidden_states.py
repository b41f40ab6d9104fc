"""Hidden states and attention weights on request, compared with the plain encoder's."""

import pytest
import torch

from dcal_hf import DCALForReID

from helpers import classifier, images, is_cait
from plain_encoders import plain_encoder, plain_maps, plain_states


PAIRS = torch.tensor([[2, 0], [1, 3]])


def test_hidden_states_are_those_of_the_plain_encoder(any_backbone_config):
    model, pixel_values = classifier(any_backbone_config), images()
    states = model(pixel_values, output_hidden_states=True).hidden_states
    assert len(states) == 1 + len(model.dcal.encoder.blocks)
    if any_backbone_config.model_type == "swin":
        # Plain Swin returns one of each stage, here of 1 and 2 blocks.
        states = [states[depth] for depth in (0, 1, 3)]
    expected = plain_states(plain_encoder(model, "sdpa"), pixel_values)
    assert len(states) == len(expected)
    for state, tokens in zip(states, expected):
        # CaiT's first blocks process only the 16 patches, the others only CLS.
        part = {1: state[:, :1], 16: state[:, -16:]}.get(tokens.size(1), state)
        assert torch.equal(part, tokens)


def test_attentions_are_those_of_the_plain_encoder(any_backbone_config):
    model, pixel_values = classifier(any_backbone_config, attn_implementation="eager"), images()
    attentions = model(pixel_values, output_attentions=True).attentions
    assert len(attentions) == len(model.dcal.encoder.blocks)
    if is_cait(any_backbone_config):
        # Mixed heads, over the patches only; then CLS.
        assert [weights.shape for weights in attentions] == [(4, 4, 16, 16), (4, 4, 1, 17), (4, 4, 1, 17)]
    elif any_backbone_config.model_type == "timm_wrapper":
        for weights, expected in zip(attentions, plain_maps(model, pixel_values), strict=True):
            torch.testing.assert_close(weights.mean(1), expected)
    else:
        # Plain Swin returns one of each stage.
        attentions = attentions[::2] if any_backbone_config.model_type == "swin" else attentions
        expected = plain_encoder(model, "eager")(pixel_values, output_attentions=True).attentions
        assert len(attentions) == len(expected) and all(map(torch.equal, attentions, expected))


def test_hidden_states_and_attentions_are_of_sa_and_change_no_other_output(vit_config):
    model, pixel_values = classifier(vit_config, attn_implementation="eager").train(), images()
    alone = model(pixel_values, output_hidden_states=True, output_attentions=True)
    labels = torch.arange(4)
    plain = model(pixel_values, labels=labels, pairs=PAIRS)
    assert plain.hidden_states is None and plain.attentions is None
    model.config.output_hidden_states = model.config.output_attentions = True
    output = model(pixel_values, labels=labels, pairs=PAIRS)
    for name in ("hidden_states", "attentions"):
        for with_pairs, without in zip(output[name], alone[name], strict=True):
            torch.testing.assert_close(with_pairs, without)
    assert all(torch.equal(output[name], plain[name]) for name in plain.keys() - {"losses"})
    assert model(pixel_values, output_hidden_states=False).hidden_states is None


def test_attentions_are_asked_of_an_implementation_that_computes_them(vit_config):
    reid = DCALForReID.from_backbone(vit_config, num_labels=4).eval()
    with pytest.raises(ValueError, match=r"'sdpa' does not compute: call set_attn_implementation\('eager'\) first"):
        reid(images(), output_attentions=True)
    reid.set_attn_implementation("eager")
    assert len(reid(images(), output_attentions=True, output_hidden_states=True).attentions) == 3
