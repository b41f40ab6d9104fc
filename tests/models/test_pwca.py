"""PWCA in the model, tested on every supported encoder."""

import copy

import pytest
import torch

from helpers import classifier, images


PAIRS = torch.tensor([[2, 0], [1, 3]])


def test_pairing_an_image_with_itself_equals_self_attention(any_backbone_config):
    model, pixel_values = classifier(any_backbone_config), images()
    itself = model(pixel_values, pairs=torch.tensor([[0, 0], [3, 3]]))
    torch.testing.assert_close(itself.pwca_logits, itself.sa_logits[[0, 0, 3, 3]])
    other = model(pixel_values, pairs=PAIRS)
    assert (other.pwca_logits - other.sa_logits[PAIRS.flatten()]).abs().amax(dim=1).min() > 1e-2
    alone = model(pixel_values)
    for name in model.config.inference_branches:
        torch.testing.assert_close(other[f"{name}_logits"], alone[f"{name}_logits"])


def test_pairing_with_itself_equals_self_attention_in_training(backbone_configs):
    """DINOv3 shifts and scales its positions at random in training, in the same way for both branches."""
    config = copy.deepcopy(backbone_configs["dinov3_vit"])
    config.pos_embed_shift, config.pos_embed_rescale = 0.5, 2.0
    model, pixel_values = classifier(config).train(), images()
    output = model(pixel_values, pairs=torch.tensor([[1, 1]]))
    torch.testing.assert_close(output.pwca_logits, output.sa_logits[[1, 1]])
    assert (output.sa_logits - model(pixel_values).sa_logits).abs().max() > 1e-2


@pytest.mark.parametrize("num_pwca_blocks", [1, 2, 3])
def test_a_pair_is_independent_of_other_images(any_backbone_config, num_pwca_blocks):
    """Bit for bit through all blocks. The images of a pair do depend on each other."""
    model, pixel_values = classifier(any_backbone_config, num_pwca_blocks=num_pwca_blocks), images()
    before = model(pixel_values, pairs=PAIRS).pwca_logits
    for replaced, place in ((0, 1), (1, 2), (2, 0), (3, 3)):
        changed = pixel_values.clone()
        changed[replaced] = torch.randn(3, 32, 32)
        after = model(changed, pairs=PAIRS).pwca_logits
        pair = place // 2
        other = slice(2 - 2 * pair, 4 - 2 * pair)
        assert torch.equal(after[other], before[other])
        assert (after - before)[2 * pair:2 * pair + 2].abs().amax(dim=1).min() > 1e-4


def test_the_order_within_a_pair_does_not_matter(any_backbone_config):
    model, pixel_values = classifier(any_backbone_config), images()
    given, turned = (model(pixel_values, pairs=pairs).pwca_logits for pairs in (PAIRS, PAIRS.flip(1)))
    torch.testing.assert_close(given.view(2, 2, -1), turned.view(2, 2, -1).flip(1))


@pytest.mark.parametrize("pair_noise", [False, True])
def test_pairs_do_not_depend_on_the_rest_of_the_batch(any_backbone_config, pair_noise):
    """Only images 0 and 2 of an odd batch are paired."""
    model, pixel_values = classifier(any_backbone_config), images()[:3]
    torch.manual_seed(1)
    part = model(pixel_values, pairs=torch.tensor([[2, 0]]), pair_noise=pair_noise)
    torch.manual_seed(1)
    alone = model(pixel_values[[2, 0]], pairs=torch.tensor([[0, 1]]), pair_noise=pair_noise)
    assert part.pwca_logits.shape == (2, 5) and part.sa_logits.shape == (3, 5)
    torch.testing.assert_close(part.pwca_logits, alone.pwca_logits)
    torch.testing.assert_close(part.sa_logits[[2, 0]], alone.sa_logits)


def test_without_pairs_pwca_does_not_run(vit_config):
    model, pixel_values, labels = classifier(vit_config), images()[:1], torch.tensor([2])
    output = model(pixel_values, labels, pairs=torch.empty(0, 2, dtype=torch.int64))
    assert output.pwca_logits is None and torch.equal(output.loss, model(pixel_values, labels).loss)


def test_noise_does_not_need_pairs(any_backbone_config):
    model, pixel_values = classifier(any_backbone_config), images()[:3]
    torch.manual_seed(1)
    everyone = model(pixel_values, labels=torch.arange(3), pair_noise=True)
    torch.manual_seed(1)
    named = model(pixel_values, pairs=torch.tensor([[0, 1], [2, 2]]), pair_noise=True)
    assert everyone.pwca_logits.shape == (3, 5) and everyone.loss.isfinite()
    assert (everyone.pwca_logits - everyone.sa_logits).abs().amax(dim=1).min() > 1e-3
    # The last row is image 2 with other noise.
    assert named.pwca_logits.shape == (4, 5) and not torch.equal(named.pwca_logits[2], named.pwca_logits[3])


@pytest.mark.parametrize("num_pwca_blocks", [1, 2, 3])
def test_pwca_runs_in_the_last_blocks(any_backbone_config, num_pwca_blocks):
    """The result equals that of a model of the last T blocks only, given the output of the first blocks."""
    model, pixel_values = classifier(any_backbone_config, num_pwca_blocks=num_pwca_blocks), images()
    whole, _, rotary = model.dcal.encode(pixel_values, None, False, {})
    dcal = model.dcal
    hidden_states = dcal.encoder.embed(pixel_values)
    blocks = dcal.encoder.blocks
    positions = {} if rotary is None else {"position_embeddings": rotary}
    for block in blocks[:-num_pwca_blocks]:
        hidden_states = block(hidden_states, attention_mask=None, attend=dcal.attend, **positions)
    hidden_states = torch.cat([hidden_states, hidden_states[[2, 0, 1, 3]]])
    for block in blocks[-num_pwca_blocks:]:
        hidden_states = block(hidden_states, attention_mask=None, attend=dcal.attend, num_paired=4, **positions)
    tokens, pair_tokens, _ = dcal.encode(pixel_values, PAIRS, False, {})
    torch.testing.assert_close(pair_tokens, hidden_states[4:, :pair_tokens.size(1)])
    assert pair_tokens.size(1) == (1 if dcal.encoder.has_cls else hidden_states.size(1))
    torch.testing.assert_close(tokens, whole)


def test_losses_ignore_distractors(vit_config):
    """Images and distractors alternate; the losses equal those of the images only."""
    model, pixel_values = classifier(vit_config), images()
    pairs, own = torch.tensor([[0, 1], [2, 3]]), [0, 2]
    output = model(pixel_values, torch.tensor([4, -100, 1, -100]), pairs)
    alone = model(pixel_values[own], torch.tensor([4, 1]))
    for name in ("sa", "glca"):
        torch.testing.assert_close(output.losses[name], alone.losses[name])
    expected = torch.nn.functional.cross_entropy(output.pwca_logits[own], torch.tensor([4, 1]))
    torch.testing.assert_close(output.losses["pwca"], expected)
    changed = model(torch.cat([pixel_values[:1], images()[:1], pixel_values[2:]]), torch.arange(4), pairs)
    assert (changed.pwca_logits - output.pwca_logits)[0].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (torch.tensor([1, 0]), r"must be int64 of shape \(P, 2\), .* got torch.int64 of shape \(2,\)"),
        (torch.tensor([[0, 1, 2]]), r"of shape \(1, 3\)"),
        (torch.tensor([[0.0, 1.0]]), "got torch.float32 of shape"),
        (torch.tensor([[0, 1], [2, 4]]), "contains image 4, but the batch has images 0 to 3"),
        (torch.tensor([[0, -1]]), "contains image -1, but"),
        (torch.tensor([[0, 1], [2, 0]]), r"contains image 0 in 2 rows: .*itself in a row \[0, 0\]"),
        (torch.tensor([[1, 1], [0, 1]]), "contains image 1 in 2 rows"),
    ],
)
def test_invalid_pairs_raise_clear_errors(vit_config, pairs, sentence):
    with pytest.raises(ValueError, match=sentence):
        classifier(vit_config)(images(), pairs=pairs)
