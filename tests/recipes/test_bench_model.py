"""The FLOP floor against what torch counts, and the model benchmark from end to end on a tiny backbone."""

import json
import sys
from argparse import Namespace
from pathlib import Path

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
    {"glca_readout": "local"},
    {"inference_branches": ("sa",)},
    {"glca_readout": "local", "num_glca_blocks": 2, "local_query_ratio": 0.5},
    {"glca_readout": "local", "local_query_selection": "similarity"},
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
    """FLOPs per image."""
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
def test_training_flops_equal_the_floor(flops, vit_config, fields):
    """Except for `4 D²`: the last block also projects keys and values of PWCA's CLS, which are not used."""
    model, batch = make(vit_config, **fields)
    unread = 0
    if model.config.uses_pwca:
        batch["pairs"] = torch.tensor([[0, 1]])
        unread = 4 * vit_config.hidden_size**2
    assert count(lambda: model.train()(**batch).loss.backward()) == flops.training_flops(model.config) + unread


def test_half_of_the_pairs_take_half_of_the_flops(flops, steps, vit_config):
    model, _ = make(vit_config)
    batch = {"pixel_values": torch.randn(4, 3, 32, 16), "labels": torch.tensor([0, 1, 2, 3])}
    batch |= steps.pairs(model, 4, 0.5)
    assert batch["pairs"].tolist() == [[0, 1]]
    with FlopCounterMode(display=False) as counter:
        model.train()(**batch).loss.backward()
    unread = 4 * vit_config.hidden_size**2
    assert counter.get_total_flops() == 4 * flops.training_flops(model.config, 0.5) + 2 * unread


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_inference_flops_equal_the_floor(flops, vit_config, fields):
    model, batch = make(vit_config, **fields)
    with torch.no_grad():
        assert count(lambda: model.eval()(batch["pixel_values"])) == flops.inference_flops(model.config)


def test_the_floor_of_sa_equals_the_plain_vit(flops, vit_config):
    model, batch = make(vit_config, branches=("sa",))
    plain = ViTForImageClassification._from_config(
        ViTConfig(**{**vit_config.to_dict(), "image_size": [32, 16], "num_labels": CLASSES}),
        attn_implementation="eager",
    )
    assert count(lambda: plain(**batch).loss.backward()) == flops.training_flops(model.config)


OPTIONS = {
    "device": "cpu", "dtype": "float32", "compile": False, "attention": "sdpa", "batch": 2, "steps": 1,
    "shapes": ["deit_tiny"], "report": "model", "repeats": 1,
}


@pytest.fixture
def tiny_shape(steps, monkeypatch):
    """Replaces DeiT-Tiny by an encoder of 2 x 2 patches and twelve blocks."""
    shape = steps.Shape("tiny", 64, 1, (32, 32), 2, 0.5)
    monkeypatch.setitem(steps.SHAPES, "deit_tiny", shape)
    return shape


@pytest.fixture
def run_case(bench_model, tiny_shape):
    """Runs a case in this process on a tiny backbone; its peak memory is meaningless."""
    return lambda name: bench_model.run_case(Namespace(case=name, **OPTIONS))


def test_every_case_runs(run_case, bench_model, harness, steps):
    names = [name for name in bench_model.CASES if name.startswith("model/deit_tiny/")]
    results = {name: harness.summary([run_case(name)]) for name in names}
    assert all(figures["seconds"] > 0 for figures in results.values())
    report = "\n".join(bench_model.report(Namespace(**OPTIONS), results))
    for model in steps.MODELS.values():
        assert f"| {model.title} |" in report
    assert "| plain ViT, transformers |" in report and "**1.00**" in report


# Compilation is slow, so only the slow tests include it.
def is_compiled(name: str) -> bool:
    return "compile" in name


def test_every_switch_runs_and_is_reported(run_case, harness, run_recipe, monkeypatch, tmp_path):
    def measure(cases, *_):
        ran = {name: run_case(name) for name in cases if not is_compiled(name)}
        assert all(figures["seconds"] > 0 for figures in ran.values())
        none = {name: {"seconds": 4.0, "bytes": 4e6} for name in cases if name.endswith("/none")}
        return {name: {"seconds": 6.0, "bytes": 5e6} for name in cases} | none

    monkeypatch.setattr(harness, "measure", measure)
    output = tmp_path / "switches.md"
    run_recipe("bench_model", "--report", "switches", "--shapes", "deit_tiny", "--output", output)
    report = output.read_text()
    assert "| none | 2 | **1.00** | 4 | **1.00** |" in report
    assert "| `--bf16` | 3 | **1.50** | 5 | **1.25** |" in report
    assert '| `inference_branches=("sa",)` | 3 | **1.50** | 5 | **1.25** |' in report


def test_the_switches_reach_the_run(run_case, bench_model, steps, monkeypatch):
    seen = {}

    def seconds(model, shape, batch, setting, count, predicts, **options):
        seen[name.removeprefix("switches/deit_tiny/")] = (model.config, predicts, options)
        return 1.0

    monkeypatch.setattr(steps, "trainer_seconds", seconds)
    for name in bench_model.CASES:
        if name.startswith("switches/deit_tiny/"):
            run_case(name)
    assert seen["Training/`num_pwca_blocks=6`"][0].num_pwca_blocks == 6
    assert seen["Training/none"][0].num_pwca_blocks == 12 and seen["Training/none"][2] == {}
    assert seen['Training/`glca_readout="local"`'][0].glca_readout == "local"
    assert seen["Training/`--lora_rank 8`"][2] == {"lora_rank": 8}
    predicting = ["Inference/none", 'Inference/`inference_branches=("sa",)`']
    assert [name for name, (_, predicts, _) in seen.items() if predicts] == predicting
    assert list(seen[predicting[1]][0].inference_branches) == ["sa"]


def test_processes_and_medians(harness, monkeypatch, tmp_path):
    """A script that prints numbers replaces the measurement."""
    script = tmp_path / "case.py"
    record = "open('ran', 'a').write(sys.argv[3] + ' ')"
    script.write_text(
        f"import json, sys\n{record}\nprint('noise')\nprint(json.dumps({{'seconds': len(sys.argv[3])}}))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "--quick"])
    # The options of the script are before the case.
    assert harness.measure({"a": 2, "long": 1, "b": 2}, "folder") == {
        "a": {"seconds": 1, "fastest": 1},
        "long": {"seconds": 4, "fastest": 4},
        "b": {"seconds": 1, "fastest": 1},
    }
    assert Path("ran").read_text().split() == ["a", "long", "b", "a", "b"]
    runs = [{"seconds": seconds, "bytes": size} for seconds, size in ((3, 50), (1, 70), (2, 60))]
    assert harness.summary(runs) == {"seconds": 2, "bytes": 60, "fastest": 1}


def test_a_report_from_the_command_line(harness, run_recipe, monkeypatch, tmp_path):
    fake = {"seconds": 1.0, "fastest": 1.0, "bytes": 10}
    monkeypatch.setattr(harness, "measure", lambda cases, *_: dict.fromkeys(cases, fake))
    run_recipe("bench_model", "--shapes", "vit_base", "--output", tmp_path / "m.md")
    report = (tmp_path / "m.md").read_text()
    assert report.startswith("# DCAL compared with the plain ViT\n") and "ViT-Base, 256 x 128, batch 8" in report
    assert "DeiT-Tiny" not in report and "### Training step in a `Trainer` run" in report
    # The notes of the report that is replaced by default are kept.
    assert "- **x plain**: ratio to the plain ViT of transformers" in report


def test_a_case_prints_json(bench_model, run_recipe, monkeypatch, capsys):
    monkeypatch.setattr(bench_model, "run_case", lambda args: {"seconds": 8, "case": args.case})
    case = "model/vit_base/Inference/DCAL, SA only"
    run_recipe("bench_model", "--case", case)
    assert json.loads(capsys.readouterr().out) == {"seconds": 8, "case": case}
