"""The FLOP floor against what torch counts, and the model benchmark from end to end on a tiny backbone."""

import json
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTForImageClassification

from dcal_hf import DCALForImageClassification


BATCH, CLASSES = 2, 5
VARIANTS = [
    {},
    {"branches": ("sa",)},
    {"branches": ("sa", "glca")},
    {"num_pwca_blocks": 0},
    {"num_pwca_blocks": 2},
    {"glca_readout": "cls"},
    {"inference_branches": ("sa",)},
    {"num_glca_blocks": 2, "local_query_ratio": 0.5},
    {"local_query_selection": "similarity"},
]


@pytest.fixture
def flops(import_recipe):
    return import_recipe("flops")


@pytest.fixture
def steps(import_recipe):
    return import_recipe("steps")


@pytest.fixture
def harness(import_recipe):
    return import_recipe("harness")


@pytest.fixture
def bench_model(import_recipe):
    return import_recipe("bench_model")


def count(run) -> int:
    """FLOPs of one image out of a batch."""
    with FlopCounterMode(display=False) as counter:
        run()
    flops, remainder = divmod(counter.get_total_flops(), BATCH)
    assert remainder == 0
    return flops


def make(vit_config: ViTConfig, **fields) -> tuple[DCALForImageClassification, dict[str, torch.Tensor]]:
    fields = {"num_labels": CLASSES, "attn_implementation": "eager", **fields}
    model = DCALForImageClassification.from_backbone(vit_config, (32, 16), **fields)
    return model, {"pixel_values": torch.randn(BATCH, 3, 32, 16), "labels": torch.tensor([0, 1])}


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_training_makes_the_products_of_the_floor_and_no_more(flops, vit_config, fields):
    """But for the keys and values that PWCA's last block, shared with SA, projects of CLS alone: `4 D²`, unread."""
    model, batch = make(vit_config, **fields)
    unread = 0
    if model.config.uses_pwca:
        batch["pairs"] = torch.tensor([[0, 1]])
        unread = 4 * vit_config.hidden_size**2
    assert count(lambda: model.train()(**batch).loss.backward()) == flops.training_flops(model.config) + unread


def test_half_of_the_pairs_cost_half_of_pwca(flops, steps, vit_config):
    model, _ = make(vit_config)
    batch = {"pixel_values": torch.randn(4, 3, 32, 16), "labels": torch.tensor([0, 1, 2, 3])}
    batch |= steps.pairs(model, 4, 0.5)
    assert batch["pairs"].tolist() == [[0, 1]]
    with FlopCounterMode(display=False) as counter:
        model.train()(**batch).loss.backward()
    unread = 4 * vit_config.hidden_size**2
    assert counter.get_total_flops() == 4 * flops.training_flops(model.config, 0.5) + 2 * unread


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_inference_makes_the_products_of_the_floor_and_no_more(flops, vit_config, fields):
    model, batch = make(vit_config, **fields)
    with torch.no_grad():
        assert count(lambda: model.eval()(batch["pixel_values"])) == flops.inference_flops(model.config)


def test_the_floor_of_sa_alone_is_the_plain_vit(flops, vit_config):
    model, batch = make(vit_config, branches=("sa",))
    plain = ViTForImageClassification._from_config(
        ViTConfig(**{**vit_config.to_dict(), "image_size": [32, 16], "num_labels": CLASSES}),
        attn_implementation="eager",
    )
    assert count(lambda: plain(**batch).loss.backward()) == flops.training_flops(model.config)


def test_fused_attention_computes_scores_once_more_in_backward(flops, steps, vit_config):
    """Why the table's counted FLOPs lie above the needed ones: by `2 N² D` per block of SA, in training alone."""
    model, batch = make(vit_config, branches=("sa",), attn_implementation="sdpa")
    size, image = flops.Sizes.of(model.config), {key: value[:1] for key, value in batch.items()}
    counted = {work: steps.counted_flops(work, model, image, steps.Setting()) for work in steps.STEPS}
    again = size.layers * 2 * size.tokens**2 * size.width
    assert counted["train"] == flops.training_flops(model.config) + again
    assert counted["infer"] == flops.inference_flops(model.config)


def test_every_case_gives_its_figures(steps, bench_model, harness, monkeypatch):
    """Each kind of case within this process, on a tiny backbone."""
    shape = steps.Shape("tiny", "vit_tiny_patch16_224", 64, 1, (32, 32), 2, 0.5)
    monkeypatch.setattr(bench_model, "SHAPES", {"deit_tiny": shape})
    names = [name for name, (shape, _, _) in bench_model.CASES.items() if shape == "deit_tiny"]
    results = {name: harness.summary([bench_model.run_case(name, 2, 1, steps.Setting())]) for name in names}
    assert all(figures["seconds"] > 0 for figures in results.values())
    report = "\n".join(bench_model.section("deit_tiny", results, 2))
    for label in bench_model.MODELS.values():
        assert label in report
    assert "| plain ViT, transformers |" in report and "**1.00**" in report


def test_a_report_from_the_command_line(bench_model, harness, monkeypatch, tmp_path):
    """Processes, medians and the report, with the measuring itself replaced by a script that prints figures."""
    script = tmp_path / "case.py"
    script.write_text("import json, sys\nprint('noise')\nprint(json.dumps({'seconds': len(sys.argv)}))\n")
    options = {"batch": 4, "compile": True, "quick": False, "size": None}
    results = harness.measure(str(script), {"a": options, "b": {}}, repeats=2)
    assert results == {"a": {"seconds": 6, "fastest": 6}, "b": {"seconds": 3, "fastest": 3}}
    runs = [{"seconds": seconds, "bytes": size} for seconds, size in ((3, 50), (1, 70), (2, 60))]
    assert harness.summary(runs) == {"seconds": 2, "bytes": 60, "fastest": 1}

    fake = {"seconds": 1.0, "fastest": 1.0, "bytes": 10, "flops": 20, "plain_seconds": 1.0}
    monkeypatch.setattr(bench_model, "measure", lambda script, cases, repeats: dict.fromkeys(cases, fake))
    monkeypatch.setattr(sys, "argv", ["bench_model.py", "--shapes", "vit_base", "--output", str(tmp_path / "m.md")])
    bench_model.main()
    report = (tmp_path / "m.md").read_text()
    assert report.startswith("# DCAL beside the plain ViT\n") and "ViT-Base, 256 x 128, batch 8" in report
    assert "DeiT-Tiny" not in report and "plain ViT, timm" in report and "alternate in one process" in report

    monkeypatch.setattr(sys, "argv", [*sys.argv, "--models", "cls-12"])
    bench_model.main()
    report = (tmp_path / "m.md").read_text()
    assert "`cls`" in report and "timm |" not in report and "alternate in one process" not in report


def test_a_case_prints_json(bench_model, monkeypatch, capsys):
    monkeypatch.setattr(bench_model, "run_case", lambda name, batch, steps, setting: {"seconds": batch})
    monkeypatch.setattr(sys, "argv", ["bench_model.py", "--case", "vit_base/train/timm"])
    bench_model.main()
    assert json.loads(capsys.readouterr().out) == {"seconds": 8}
