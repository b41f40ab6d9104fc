"""What DCAL adds, against the paper's published cost."""

import pytest


@pytest.fixture
def bench_cost(import_recipe):
    return import_recipe("bench_cost")


def test_the_published_rows_are_there(bench_cost):
    published = {row.backbone: (row.task.title, row.published) for row in bench_cost.ROWS if row.published}
    assert published == {
        "DeiT-Tiny": ("CUB-200-2011", (9, 2)),
        "DeiT-Base, ViT-Base": ("VeRi-776", (8, 3)),
    }


def published_row(bench_cost, backbone: str):
    return next(row for row in bench_cost.ROWS if row.published and row.backbone == backbone)


@pytest.mark.parametrize("backbone", ["DeiT-Tiny", "DeiT-Base, ViT-Base"])
def test_the_published_parameters_are_met(bench_cost, backbone):
    row = published_row(bench_cost, backbone)
    baseline, dcal = (
        bench_cost.num_parameters(bench_cost.build(row, row.task.inferred, **fields), "loss_weights")
        for fields in ({"branches": ("sa",)}, {})
    )
    assert round(100 * (dcal / baseline - 1)) == row.published[0]


@pytest.mark.parametrize("backbone", ["DeiT-Tiny", "DeiT-Base, ViT-Base"])
def test_the_published_flops_are_met(bench_cost, backbone):
    """Without the rollout."""
    row = published_row(bench_cost, backbone)
    baseline = bench_cost.inference_cost(row, branches=("sa",))
    dcal = bench_cost.inference_cost(row, local_query_selection="random")
    assert round(100 * (dcal.flops / baseline.flops - 1)) == row.published[1]


def test_without_glca_nothing_is_added_at_inference(bench_cost):
    row = bench_cost.ROWS[-1]
    assert row.backbone == "Swin-T, PWCA alone"
    assert bench_cost.inference_cost(row) == bench_cost.inference_cost(row, branches=("sa",))


def test_a_line_of_the_table(bench_cost, vit_config):
    row = bench_cost.Row("tiny", lambda: vit_config, bench_cost.MSMT, (32, 16), published=(7, 1))
    cells = bench_cost.cells(row)
    assert len(cells) == len(bench_cost.HEADER)
    assert cells[:2] == ["tiny", "MSMT17, 32 x 16"] and "+7 %, +1 %" in cells
