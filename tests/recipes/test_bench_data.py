"""The data benchmark on a few small files."""

import sys
from argparse import Namespace

import pytest
from PIL import Image


@pytest.fixture
def bench_data(import_recipe):
    return import_recipe("bench_data")


def test_the_files_are_of_photographic_size(bench_data, tmp_path):
    mean = bench_data.make_images(tmp_path, 2)
    assert 40_000 < mean < 150_000
    with Image.open(tmp_path / "0001.jpg") as image:
        assert image.size == (500, 375)


@pytest.mark.parametrize("name", ["decode", "train_augmented", "eval", "reid"])
def test_every_transform_runs(bench_data, tmp_path, name):
    bench_data.make_images(tmp_path, 2)
    assert bench_data.run_case(Namespace(case=f"{name}/0", folder=tmp_path))["images_per_second"] > 0


def test_the_report(bench_data, monkeypatch, tmp_path):
    output = tmp_path / "data.md"
    monkeypatch.setattr(bench_data, "measure", lambda cases, r: dict.fromkeys(cases, {"images_per_second": 60.0}))
    monkeypatch.setattr(
        sys, "argv", ["bench_data.py", "--count", "2", "--speeds", "1.5", "2", "--output", str(output)]
    )
    bench_data.main()
    assert "| `TrainTransform` | DeiT-Tiny, 448 x 448 | 60 | 40 | 60 | 40 |" in output.read_text()
