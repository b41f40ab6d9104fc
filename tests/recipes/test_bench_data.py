"""The data benchmark on a few small files."""

from argparse import Namespace

import pytest
from PIL import Image


@pytest.fixture
def bench_data(import_recipe):
    return import_recipe("bench_data")


def test_the_files_are_of_photographic_size(bench_data, tmp_path):
    path = bench_data.make_images(tmp_path, 1)[0]
    assert 40_000 < path.stat().st_size < 150_000
    with Image.open(path) as image:
        assert image.size == (500, 375)


def test_every_transform_runs(bench_data, tmp_path):
    names = [name for name, (_, workers) in bench_data.CASES.items() if workers == 0]
    assert len(names) == len(bench_data.TRANSFORMS)
    for name in names:
        assert bench_data.run_case(Namespace(case=name, folder=tmp_path, count=2))["images_per_second"] > 0


def test_the_report(bench_data, import_recipe, run_recipe, monkeypatch, tmp_path):
    figures = {"images_per_second": 60.0, "file_bytes": 73_000}
    monkeypatch.setattr(import_recipe("harness"), "measure", lambda cases, *_: dict.fromkeys(cases, figures))
    output = tmp_path / "data.md"
    run_recipe("bench_data", "--count", "2", "--speeds", "1.5", "2", "--output", output)
    report = output.read_text()
    assert "| `TrainTransform` | DeiT-Tiny, 448 x 448 | 60 | 40 | 60 | 40 |" in report
    assert report.startswith("# Decoding") and "2 JPEG files of 500 x 375 smooth noise, 73 kB each" in report
