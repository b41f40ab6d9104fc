"""No step of DCAL creates an attention map, except on CaiT; and the report of the largest tensors."""

from argparse import Namespace

import pytest
import torch

from dcal_hf import DCALForImageClassification
from dcal_hf.models.attention_dcal import ROLLOUT_CHUNK

from helpers import is_cait


# More tokens than any other dimension of these encoders, and more than the rollout's chunk of rows.
SIDE, PATCHES = 120, 225


@pytest.fixture
def tensors(import_recipe):
    return import_recipe("tensors")


def made_by_a_step(tensors, config, dtype=None, **fields) -> set:
    """The tensors created by forward and backward of all branches on two images, with the rollout."""
    model = DCALForImageClassification.from_backbone(config, SIDE, num_labels=3, **fields).train()
    images, labels = torch.randn(2, 3, SIDE, SIDE), torch.tensor([0, 1])

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            output = model(images, labels=labels, pairs=torch.tensor([[0, 1]]), output_rollout=True)
        assert output.rollout.shape == (2, PATCHES)
        output.loss.backward()

    return tensors.made_tensors(step)


def is_attention_map(shape: tuple[int, ...], tokens: int) -> bool:
    """Whether a tensor has an entry for each pair of `tokens` tokens, or for each of them and twice as many keys.

    Any order of dimensions counts, also where some are one: `(B, H, N, 2 N)` and `(B H, N N)` are maps.
    """
    return sum(size >= tokens for size in shape) > 1 or any(size >= tokens**2 for size in shape)


def maps(made: set) -> set:
    return {tensor for tensor in made if is_attention_map(tensor.shape, PATCHES)}


def test_no_step_makes_an_attention_map(tensors, backbone_config):
    if is_cait(backbone_config):
        pytest.skip("CaiT mixes the heads on both sides of its softmax: its maps are made, in timm as here.")
    made = made_by_a_step(tensors, backbone_config)
    assert maps(made) == set()
    # The recorded tensors include attention in forward and backward, and the rollout's chunks of rows.
    operations = {tensor.operation for tensor in made}
    assert {f"_scaled_dot_product_flash_attention_for_cpu{end}" for end in ("", "_backward")} <= operations
    assert ROLLOUT_CHUNK in {tensor.shape[1] for tensor in made if tensor.operation == "bmm" and tensor.shape[0] == 4}


@pytest.mark.parametrize(
    "fields", [{"dtype": torch.bfloat16}, {"glca_readout": "cls"}, {"num_pwca_blocks": 1}], ids=str
)
def test_no_switch_makes_an_attention_map(tensors, vit_config, fields):
    assert maps(made_by_a_step(tensors, vit_config, **fields)) == set()


def test_eager_attention_maps_are_detected(tensors, vit_config):
    """Eager attention creates the maps of SA, and PWCA's over both images."""
    tokens = PATCHES + 1
    found = maps(made_by_a_step(tensors, vit_config, attn_implementation="eager"))
    for operation in ("_softmax", "_softmax_backward_data"):
        shapes = {made.shape for made in found if made.operation == operation}
        assert shapes == {(2, 4, tokens, tokens), (1, 4, 2 * tokens, 2 * tokens)}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 4, 10, 10), True),
        ((8, 10, 20), True),
        ((8, 100), True),
        ((2, 10, 9), False),
        ((80, 9), False),
        ((4, 9, 10), False),
    ],
)
def test_is_map(shape, expected):
    assert is_attention_map(shape, 10) is expected


def test_allocations_are_recorded_and_views_are_not(tensors):
    weight = torch.ones(3, requires_grad=True)
    made = tensors.made_tensors(lambda: (weight.expand(5, 3) * 2).sum().backward())
    noted = {(tensor.operation, tensor.shape, tensor.size) for tensor in made}
    # Backward: a gradient of 1 is expanded (a view), doubled, and summed.
    assert noted == {("mul", (5, 3), 60), ("sum", (), 4), ("ones_like", (), 4), ("sum", (1, 3), 12)}


def test_the_report(import_recipe, run_recipe, monkeypatch, tmp_path):
    """Both cases in this process, on a tiny backbone."""
    bench, steps = import_recipe("bench_model"), import_recipe("steps")
    options = {"device": "cpu", "dtype": "float32", "compile": False, "attention": "sdpa", "batch": 2}
    monkeypatch.setitem(steps.SHAPES, "deit_tiny", steps.Shape("tiny", 64, 2, (SIDE + 8, SIDE + 8), 2, 0.5))
    monkeypatch.setattr(
        import_recipe("harness"),
        "measure",
        lambda cases, *_: {name: bench.run_case(Namespace(case=name, **options)) for name in cases},
    )
    output = tmp_path / "memory.md"
    run_recipe("bench_model", "--report", "memory", "--shapes", "deit_tiny", "--output", output)
    report = output.read_text()
    assert report.startswith("# The largest tensors of a training step\n") and "### sdpa" in report
    # 64 patches of 16 pixels and CLS, 2 heads, 2 images.
    assert "| (a map of 65 x 65 tokens, 2 heads and 2 images) | 0.1 | 1.00 |" in report
    assert "| gelu 4 x 65 x 256 | 0.3 |" in report
