"""The costs of DCAL against those in the paper."""

from argparse import Namespace

import pytest


@pytest.fixture
def bench_cost(import_recipe):
    return import_recipe("bench_cost")


def test_rows_of_the_paper(bench_cost):
    published = {("DeiT-Tiny", "CUB-200-2011"): (9, 2), ("DeiT-Base, ViT-Base", "VeRi-776"): (8, 3)}
    assert bench_cost.PUBLISHED == published and published.keys() <= set(bench_cost.CASES.values())


@pytest.mark.parametrize("case", ["DeiT-Tiny/CUB-200-2011", "DeiT-Base, ViT-Base/VeRi-776"])
def test_the_published_costs_are_reproduced(bench_cost, case):
    """Without the rollout."""
    backbone, title = bench_cost.CASES[case]
    task = bench_cost.TASKS[title]
    baseline = bench_cost.inference_cost(backbone, task, **bench_cost.PLAIN)
    dcal = bench_cost.inference_cost(backbone, task, **bench_cost.WITHOUT_ROLLOUT)
    more = tuple(round(100 * (new / old - 1)) for new, old in zip(dcal, baseline))
    assert more == bench_cost.PUBLISHED[backbone, title]


def test_without_glca_inference_costs_nothing_extra(bench_cost):
    task = bench_cost.TASKS["MSMT17"]
    swin = bench_cost.inference_cost(bench_cost.SWIN, task)
    assert swin == bench_cost.inference_cost(bench_cost.SWIN, task, **bench_cost.PLAIN)


def test_a_line_of_the_table(bench_cost, vit_config, monkeypatch):
    monkeypatch.setitem(bench_cost.BACKBONES, "DeiT-Tiny", lambda: vit_config)
    monkeypatch.setitem(bench_cost.PUBLISHED, ("DeiT-Tiny", "MSMT17"), (7, 1))
    figures = bench_cost.run_case(Namespace(case="DeiT-Tiny/MSMT17"))
    assert figures["rollout_flops"] > figures["dcal_flops"] > figures["baseline_flops"] > 0
    assert figures["training_parameters"] > figures["baseline_training_parameters"]
    cells = bench_cost.row("DeiT-Tiny/MSMT17", figures)
    assert cells["data set, input"] == "MSMT17, 256 x 128" and cells["paper"] == "+7 %, +1 %"
    ratio = figures["training_flops"] / figures["baseline_training_flops"]
    assert float(cells["training: FLOPs, x baseline"]) == pytest.approx(ratio, abs=0.006)
