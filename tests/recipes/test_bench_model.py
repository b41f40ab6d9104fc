"""The FLOP floor against what torch counts, and the model benchmark from end to end on a tiny backbone."""

import json
import sys
from argparse import Namespace

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


OPTIONS = {
    "device": "cpu", "dtype": "float32", "compile": False, "attention": "sdpa", "batch": 2, "steps": 1,
    "shapes": ["deit_tiny"],
}


@pytest.fixture
def run_case(bench_model, steps, monkeypatch):
    """A case within this process, where peaks of memory mean nothing, on a tiny backbone."""
    shape = steps.Shape("tiny", "vit_tiny_patch16_224", 64, 1, (32, 32), 2, 0.5)
    monkeypatch.setattr(bench_model, "SHAPES", {"deit_tiny": shape})
    return lambda name: bench_model.run_case(Namespace(case=name, **OPTIONS))


def test_every_case_gives_its_figures(run_case, bench_model, harness):
    names = [name for name, (shape, _, _) in bench_model.CASES.items() if shape == "deit_tiny"]
    results = {name: harness.summary([run_case(name)]) for name in names}
    assert all(figures["seconds"] > 0 for figures in results.values())
    report = "\n".join(bench_model.section("deit_tiny", results, 2))
    for label in bench_model.MODELS.values():
        assert label in report
    assert "| plain ViT, transformers |" in report and "**1.00**" in report


# Compilation takes its time, and is one switch like the others.
COMPILED = {"compile", "bf16-compile"}


def test_every_switch_runs_and_is_told(run_case, bench_model, run_recipe, monkeypatch, tmp_path):
    def measure(cases, repeats):
        ran = {name: run_case(name) for name in cases if name not in COMPILED}
        assert all(figures["seconds"] > 0 for figures in ran.values())
        return {name: {"seconds": 3.0, "bytes": 5e6} for name in cases} | {"none": {"seconds": 2.0, "bytes": 4e6}}

    monkeypatch.setattr(bench_model, "measure", measure)
    run_recipe("bench_model", "--switches", "--shapes", "deit_tiny", "--output", tmp_path / "switches.md")
    report = (tmp_path / "switches.md").read_text()
    assert "| none | 2 | **1.00** | 4 | **1.00** |" in report
    assert "| `--bf16` | 3 | **1.50** | 5 | **1.25** |" in report
    assert '| `inference_branches=("sa",)` | 3 | **1.00** | 5 | **1.00** |' in report


def test_the_switches_reach_the_run(run_case, bench_model, monkeypatch):
    seen = {}

    def seconds(model, shape, batch, setting, steps, predicts, **options):
        seen[name] = (model.config, predicts, options)
        return [1.0]

    monkeypatch.setattr(bench_model, "trainer_seconds", seconds)
    for name in bench_model.SWITCHES:
        run_case(name)
    assert seen["pwca-6"][0].num_pwca_blocks == 6 and seen["none"][0].num_pwca_blocks == 12
    assert seen["cls"][0].glca_readout == "cls"
    assert [name for name, (_, predicts, _) in seen.items() if predicts] == ["inference", "inference-sa"]
    assert list(seen["inference-sa"][0].inference_branches) == ["sa"]
    assert seen["lora"][2] == {"lora_rank": 8} and seen["none"][2] == {}


def test_a_report_from_the_command_line(bench_model, harness, run_recipe, monkeypatch, tmp_path):
    """Processes, medians and the report, with the measuring itself replaced by a script that prints figures."""
    script = tmp_path / "case.py"
    script.write_text("import json, sys\nprint('noise')\nprint(json.dumps({'seconds': len(sys.argv)}))\n")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), "--quick"])
        results = harness.measure({"a": ["--batch", "4"], "b": ()}, repeats=2)
    # The script and its own options, the case, what is the case's alone.
    assert results == {"a": {"seconds": 6, "fastest": 6}, "b": {"seconds": 4, "fastest": 4}}
    runs = [{"seconds": seconds, "bytes": size} for seconds, size in ((3, 50), (1, 70), (2, 60))]
    assert harness.summary(runs) == {"seconds": 2, "bytes": 60, "fastest": 1}

    fake = {"seconds": 1.0, "fastest": 1.0, "bytes": 10, "flops": 20, "plain_seconds": 1.0}
    monkeypatch.setattr(bench_model, "measure", lambda cases, repeats: dict.fromkeys(cases, fake))
    command = ["bench_model", "--shapes", "vit_base", "--output", tmp_path / "m.md"]
    run_recipe(*command)
    report = (tmp_path / "m.md").read_text()
    assert report.startswith("# DCAL beside the plain ViT\n") and "ViT-Base, 256 x 128, batch 8" in report
    assert "DeiT-Tiny" not in report and "plain ViT, timm" in report and "alternate in one process" in report

    run_recipe(*command, "--models", "cls-12")
    report = (tmp_path / "m.md").read_text()
    assert "`cls`" in report and "timm |" not in report and "alternate in one process" not in report


def test_a_case_prints_json(bench_model, run_recipe, monkeypatch, capsys):
    monkeypatch.setattr(bench_model, "run_case", lambda args: {"seconds": 8, "case": len(args.case)})
    with pytest.raises(SystemExit):
        run_recipe("bench_model", "--case", "vit_base/train/timm")
    assert json.loads(capsys.readouterr().out) == {"seconds": 8, "case": 19}
