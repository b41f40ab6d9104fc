"""The benchmark of switches on a tiny backbone."""

import sys

import pytest


# Compilation takes its time, and is one switch like the others.
COMPILED = {"compile", "bf16-compile"}


@pytest.fixture
def bench_switches(import_recipe, monkeypatch):
    steps = import_recipe("steps")
    bench = import_recipe("bench_switches")
    monkeypatch.setattr(bench, "SHAPE", steps.Shape("tiny", "", 64, 1, (32, 32), 2, 0.5))
    return bench


def test_every_switch_runs_and_is_told(bench_switches, monkeypatch, tmp_path):
    """Within this process, where peaks of memory mean nothing."""

    def measure(script, cases, repeats):
        ran = {name: bench_switches.run_case(name, 2, 1, "cpu") for name in cases if name not in COMPILED}
        assert all(figures["seconds"] > 0 for figures in ran.values())
        return {name: {"seconds": 3.0, "bytes": 5e6} for name in cases} | {"none": {"seconds": 2.0, "bytes": 4e6}}

    output = tmp_path / "switches.md"
    monkeypatch.setattr(bench_switches, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["bench_switches.py", "--output", str(output)])
    bench_switches.main()
    report = output.read_text()
    assert "| none | 2 | **1.00** | 4 | **1.00** |" in report
    assert "| `--bf16` | 3 | **1.50** | 5 | **1.25** |" in report
    assert '| `inference_branches=("sa",)` | 3 | **1.00** | 5 | **1.00** |' in report


def test_the_switches_reach_the_run(bench_switches, monkeypatch):
    seen = {}

    def seconds(model, shape, batch, setting, steps, predicts, **options):
        seen[name] = (model.config, predicts, options)
        return [1.0]

    monkeypatch.setattr(bench_switches, "trainer_seconds", seconds)
    for name in bench_switches.SWITCHES:
        bench_switches.run_case(name, 2, 1, "cpu")
    assert seen["pwca-6"][0].num_pwca_blocks == 6 and seen["none"][0].num_pwca_blocks == 12
    assert seen["cls"][0].glca_readout == "cls"
    assert [name for name, (_, predicts, _) in seen.items() if predicts] == ["inference", "inference-sa"]
    assert list(seen["inference-sa"][0].inference_branches) == ["sa"]
    assert seen["lora"][2] == {"lora_rank": 8} and seen["none"][2] == {}
