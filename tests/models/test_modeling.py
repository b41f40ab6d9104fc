"""Properties of the model, tested on every supported encoder."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import ViTConfig, ViTModel
from transformers.testing_utils import CaptureLogger
from transformers.utils.logging import get_logger

from dcal_hf import DCALForImageClassification, DCALForReID, DCALModel
from dcal_hf.models.cait_dcal import ClassBlock
from dcal_hf.models.classification_dcal import mean_probability_logits

from helpers import classifier, images
from plain_encoders import plain_encoder, plain_maps, plain_tokens


PAIRS = torch.tensor([[2, 0], [1, 3]])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_self_attention_is_bit_for_bit_the_plain_encoder(any_backbone_config, implementation):
    model = classifier(any_backbone_config, attn_implementation=implementation)
    pixel_values = images()
    expected = plain_tokens(plain_encoder(model, implementation), pixel_values)
    if (implementation, any_backbone_config.model_type) == ("eager", "timm_wrapper"):
        # timm ignores the attention implementation of transformers.
        torch.testing.assert_close(model.dcal(pixel_values).last_hidden_state, expected)
    else:
        assert torch.equal(model.dcal(pixel_values).last_hidden_state, expected)


def test_weights_in_half_precision_take_pixels_in_float32(any_backbone_config):
    """As the plain encoders do, with `model.half()` and `bf16_full_eval`."""
    model, pixel_values = classifier(any_backbone_config).bfloat16(), images()
    assert torch.equal(model(pixel_values).logits, model(pixel_values.bfloat16()).logits)


def test_rollout_is_the_matrix_product_of_the_plain_maps(backbone_config):
    model, pixel_values = classifier(backbone_config), images()
    maps = [attention.double() for attention in plain_maps(model, pixel_values)]
    identity = torch.eye(maps[0].size(-1), dtype=torch.float64)
    rollout = identity
    for attention in maps:
        rollout = (0.5 * attention + 0.5 * identity) @ rollout
    prefix = maps[0].size(-1) - 16
    output = model(pixel_values)
    torch.testing.assert_close(output.rollout.double(), rollout[:, 0, prefix:], atol=1e-6, rtol=1e-4)
    expected = rollout[:, 0, prefix:].topk(4).indices
    assert torch.equal(output.local_query_indices, expected)


def test_last_layer_selection_is_the_top_of_the_last_map(backbone_config):
    model, pixel_values = classifier(backbone_config, local_query_selection="last_layer"), images()
    last = plain_maps(model, pixel_values)[-1]
    output = model(pixel_values)
    assert torch.equal(output.local_query_indices, last[:, 0, -16:].topk(4).indices)
    assert output.rollout is None
    assert model(pixel_values, output_rollout=True).rollout is not None


def test_similarity_selection_uses_the_cosine_with_cls(backbone_config):
    model, pixel_values = classifier(backbone_config, local_query_selection="similarity"), images()
    tokens = plain_tokens(plain_encoder(model, "sdpa"), pixel_values).double()
    cosines = torch.einsum("bd,bnd->bn", tokens[:, 0], tokens[:, -16:])
    cosines = cosines / tokens[:, -16:].norm(dim=2)
    output = model(pixel_values)
    assert torch.equal(output.local_query_indices, cosines.topk(4).indices)
    assert output.rollout is None
    assert model(pixel_values, output_rollout=True).rollout is not None


def test_random_selection_draws_distinct_patches(vit_config):
    model = classifier(vit_config, local_query_selection="random")
    indices = torch.cat([model(images()).local_query_indices for _ in range(50)])
    assert all(len(set(row)) == 4 for row in indices.tolist())
    assert indices.flatten().bincount(minlength=16).min() > 20  # 50 expected


@pytest.mark.parametrize(
    ("switches", "changes"),
    [
        ({"glca_readout": "local"}, True),
        ({"glca_readout": "cls"}, False),
        ({"glca_readout": "cls", "glca_scope": "local"}, True),
        ({"glca_readout": "local", "num_glca_blocks": 2}, True),
        ({"glca_readout": "cls", "num_glca_blocks": 2}, False),
    ],
)
def test_when_the_selection_affects_the_prediction(backbone_config, switches, changes):
    model, pixel_values = classifier(backbone_config, **switches), images()
    logits = model(pixel_values).glca_logits
    model.config.local_query_ratio = 0.7
    difference = (model(pixel_values).glca_logits - logits).abs()
    assert difference.amax(dim=1).min() > 1e-4 if changes else difference.max() == 0


def test_cls_readout_computes_the_rollout_only_on_request(vit_config):
    model = classifier(vit_config, glca_readout="cls")
    output = model(images())
    assert output.rollout is None and output.local_query_indices is None
    assert model(images(), output_rollout=True).rollout.shape == (4, 16)


def full_glca(model: DCALForImageClassification, pixel_values: Tensor) -> Tensor:
    """The GLCA block run as a plain block, with all tokens as queries."""
    dcal = model.dcal
    hidden_states = dcal.encoder.embed(pixel_values)
    rotary = dcal.encoder.rotary(pixel_values)
    blocks = dcal.encoder.blocks
    whole = [copy.deepcopy(blocks[-1]) for _ in dcal.glca.blocks]
    for plain, block in zip(whole, dcal.glca.blocks):
        plain.load_state_dict(block.state_dict())
    arguments = {"attention_mask": None, "attend": dcal.attend}
    arguments |= {} if rotary is None else {"position_embeddings": rotary}
    for block in blocks:
        hidden_states = block(hidden_states, **arguments)
    for block in whole:
        hidden_states = every_row(block, hidden_states, **arguments)
    return dcal.encoder.final_norm(hidden_states)


def every_row(block: torch.nn.Module, tokens: Tensor, **arguments) -> Tensor:
    """Class attention of every token, computed by putting each token in the position of CLS."""
    if not isinstance(block, ClassBlock):
        return block(tokens, **arguments)
    turns = [tokens.roll(-place, dims=1) for place in range(tokens.size(1))]
    return torch.cat([block(turn, **arguments)[:, :1] for turn in turns], dim=1)


def test_glca_equals_the_rows_of_a_full_block(backbone_config):
    """A subset of queries gives the same rows as self-attention of all tokens (with rotary positions)."""
    model, pixel_values = classifier(backbone_config), images()
    rows, output = full_glca(model, pixel_values), model(pixel_values)
    prefix = rows.size(1) - 16
    expected = torch.stack([row[indices + prefix].mean(0) for row, indices in zip(rows, output.local_query_indices)])
    torch.testing.assert_close(output.embeddings[:, 32:], expected, atol=1e-5, rtol=1e-4)
    model.dcal.glca.readout = model.config.glca_readout = "cls"
    torch.testing.assert_close(model(pixel_values).embeddings[:, 32:], rows[:, 0], atol=1e-5, rtol=1e-4)


def test_local_scope_attends_only_to_the_selected_tokens(backbone_config):
    model, pixel_values = classifier(backbone_config, glca_scope="local"), images()
    dcal = model.dcal
    tokens, _, rotary = dcal.encode(pixel_values, None, False, {})
    indices = model(pixel_values).local_query_indices
    prefix = dcal.encoder.num_prefix_tokens
    unread = torch.ones(4, tokens.size(1), dtype=torch.bool)
    unread[:, 0] = False
    unread.scatter_(1, indices + prefix, False)
    outputs = [
        dcal.glca(x, indices, rotary, attend=dcal.attend)
        for x in (tokens, tokens.masked_fill(unread[..., None], 7.0))
    ]
    assert torch.equal(*outputs)


def test_probabilities_are_the_mean_of_the_branches(vit_config):
    output = classifier(vit_config)(images())
    expected = (output.sa_logits.softmax(-1) + output.glca_logits.softmax(-1)) / 2
    torch.testing.assert_close(output.logits.softmax(-1), expected)


def test_a_single_branch_keeps_its_logits():
    logits = torch.randn(3, 4)
    assert mean_probability_logits([logits]) is logits


@pytest.mark.parametrize("inference_branches", [("sa",), ("glca",), ("sa", "glca")])
def test_inference_runs_only_the_chosen_branches(vit_config, inference_branches):
    model = classifier(vit_config, inference_branches=inference_branches)
    output = model(images(), labels=torch.arange(4))
    assert (output.sa_logits is None) == ("sa" not in inference_branches)
    assert (output.glca_logits is None) == ("glca" not in inference_branches)
    assert output.embeddings.shape == (4, 32 * len(inference_branches))
    assert set(output.losses) == set(inference_branches)


def test_loss_is_the_weighted_cross_entropy_of_each_branch(vit_config):
    model, labels = classifier(vit_config).train(), torch.arange(4)
    output = model(images(), labels=labels, pairs=PAIRS)
    weights = dict(zip(model.config.branches, model.loss_weights.log_vars))
    total = 0
    for name, weight in weights.items():
        logits = output[f"{name}_logits"]
        targets = torch.tensor([2, 0, 1, 3]) if name == "pwca" else labels
        loss = -logits.log_softmax(-1)[torch.arange(4), targets].mean()
        torch.testing.assert_close(output.losses[name], loss)
        total = total + 0.5 * (torch.exp(-weight) * loss + weight)
    torch.testing.assert_close(output.loss, total)


def test_labels_may_be_probabilities(vit_config):
    model, pixel_values, labels = classifier(vit_config), images(), torch.arange(4)
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    torch.testing.assert_close(model(pixel_values, one_hot).loss, model(pixel_values, labels).loss)


def test_label_smoothing_equals_torch(vit_config):
    model, pixel_values, labels = classifier(vit_config), images(), torch.tensor([4, 0, -100, 1])
    output = model(pixel_values, labels, PAIRS, smoothing=0.3)
    smooth = torch.nn.functional.one_hot(labels.clamp(min=0), 5) * 0.7 + 0.3 / 5
    cross_entropies = -(output.pwca_logits.log_softmax(-1) * smooth[[2, 0, 1, 3]]).sum(1)
    # The first image in the pairs is image 2, which the loss ignores.
    torch.testing.assert_close(output.losses["pwca"], cross_entropies[1:].mean())
    probabilities = torch.nn.functional.one_hot(labels[:2], 5).float()
    expected = model(pixel_values[:2], labels[:2], smoothing=0.3).loss
    torch.testing.assert_close(model(pixel_values[:2], probabilities, smoothing=0.3).loss, expected)


BRANCH_SETS = [("sa",), ("glca",), ("pwca",), ("sa", "glca"), ("sa", "pwca"), ("glca", "pwca"), ("sa", "glca", "pwca")]


@pytest.mark.parametrize("branches", BRANCH_SETS)
def test_every_parameter_of_every_subset_gets_a_gradient(vit_config, branches):
    """DistributedDataParallel without `find_unused_parameters` requires it."""
    model = classifier(vit_config, branches=branches).train()
    output = model(images(), labels=torch.arange(4), pairs=PAIRS if "pwca" in branches else None)
    assert set(output.losses) == set(branches)
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.eval()(images(), labels=torch.arange(4)).loss.isfinite()


def test_every_parameter_of_every_encoder_gets_a_gradient(any_backbone_config):
    for readout in ("local", "cls"):
        model = classifier(any_backbone_config, glca_readout=readout).train()
        model(images(), labels=torch.arange(4), pairs=PAIRS).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("model_class", [DCALForImageClassification, DCALForReID])
@pytest.mark.parametrize("branches", [("sa",), ("sa", "pwca"), ("sa", "glca")])
def test_shared_modules_are_initialised_independently_of_the_branches(vit_config, model_class, branches):
    """So that the runs of an ablation start from the same weights."""
    starts = []
    for trained in (("sa", "glca", "pwca"), branches):
        torch.manual_seed(3)
        starts.append(model_class.from_backbone(vit_config, num_labels=5, branches=trained).state_dict())
    full, part = starts
    shared = [name for name in part if name != "loss_weights.log_vars"]
    assert any("classifier" in name for name in shared)
    assert [name for name in shared if not torch.equal(part[name], full[name])] == []


def test_sa_only_adds_no_parameters_to_the_encoder(vit_config):
    model = classifier(vit_config, branches=("sa",))
    plain = plain_encoder(model, "sdpa")
    assert model.num_parameters() == plain.num_parameters() + 32 * 5 + 5
    assert model.loss_weights is None


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"pixel_values": torch.zeros(2, 3, 32, 40)}, r"have \(32, 40\) pixels, but the model takes \(32, 32\)"),
        ({"pixel_values": torch.zeros(2, 3, 32, 32), "pairs": torch.tensor([[0, 1]])}, "has no PWCA branch"),
        ({"pixel_values": torch.zeros(2, 3, 32, 32), "pair_noise": True}, "has no PWCA branch"),
    ],
)
def test_invalid_inputs_raise_clear_errors(vit_config, kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        classifier(vit_config, branches=("sa", "glca"))(**kwargs)


@pytest.mark.parametrize(
    ("pixel_values", "pairs", "sentence"),
    [
        (np.zeros((2, 3, 32, 32)), None, "pixel_values must be a tensor .* return_tensors='pt', got ndarray"),
        ([torch.zeros(3, 32, 32)], None, "pixel_values must be a tensor .*, got list"),
        (torch.zeros(3, 32, 32), None, r"also for a single image, got \(3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32), [[0, 1]], r"pairs must be a tensor of shape \(P, 2\), int64, got list"),
        (torch.zeros(2, 3, 32, 32), np.array([[0, 1]]), "pairs must be a tensor .*, got ndarray"),
    ],
)
def test_inputs_must_be_tensors(vit_config, pixel_values, pairs, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        classifier(vit_config)(pixel_values, pairs=pairs)


def test_a_model_is_no_encoder_to_build_from(vit_config):
    with pytest.raises(TypeError, match="folder or configuration of an encoder, not ViTModel: save a model"):
        DCALForImageClassification.from_backbone(ViTModel(vit_config), num_labels=3)


def test_several_classes_per_image_are_rejected(vit_config):
    with pytest.raises(ValueError, match="'multi_label_classification' is not supported: each image has"):
        classifier(vit_config, problem_type="multi_label_classification")


def test_a_single_class_is_rejected(vit_config):
    with pytest.raises(ValueError, match="at least two classes, got num_labels=1"):
        classifier(vit_config, num_labels=1)


def test_reentrant_checkpointing_is_rejected(vit_config):
    """Its backward pass would fail, and without a choice torch checkpoints so."""
    model = classifier(vit_config).train()
    with pytest.raises(ValueError, match="use_reentrant=True does not support .*: leave use_reentrant out"):
        model.activation_checkpointing_enable({"use_reentrant": True})
    model.activation_checkpointing_enable({"preserve_rng_state": True})
    model(images(), torch.arange(4), PAIRS).loss.backward()
    assert model.is_activation_checkpointing and model.dcal.backbone.layers[0].attention.q_proj.weight.grad.any()


def test_attention_that_ignores_pairs_is_rejected(vit_config):
    model = classifier(vit_config)
    model.dcal.backbone.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="ignores pairs: call set_attn_implementation on the DCAL model"):
        model(images(), pairs=PAIRS)
    with CaptureLogger(get_logger("transformers.modeling_utils")) as log:
        model.set_attn_implementation("eager")
    assert log.out == "" and model.config._attn_implementation == "eager"
    assert model(images(), pairs=PAIRS).pwca_logits is not None


def test_rectangular_images(backbone_config):
    model = classifier(backbone_config, image_size=(48, 32))
    output = model(images(48, 32), pairs=PAIRS)
    assert output.rollout.shape == (4, 24) and output.local_query_indices.shape == (4, 7)


def test_one_input_size_of_a_preset_backbone():
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    assert DCALModel.from_backbone(config, image_size=448).config.grid == (28, 28)
