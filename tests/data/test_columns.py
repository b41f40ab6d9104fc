"""Columns are read without the transform of a data set, and images without decoding them."""

from pathlib import Path

import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from datasets import List, Value

from dcal_hf.data import column, image_names, protocol_columns

from helpers import noise_picture


FEATURES = {"image": ImageFeature(), "identity": Value("int64"), "bbox": List(Value("float64"))}
ROWS = {"identity": [3, 4, 3], "bbox": [[0, 0, 8, 8], [0, 0, 8, 8], [8, 0, 8, 8]]}


def refuse(batch):
    raise AssertionError("an image was opened")


@pytest.fixture
def on_disk(tmp_path) -> Dataset:
    """Three individuals in files that are no images."""
    paths = [str(tmp_path / f"{number}.png") for number in (0, 1, 1)]
    for path in paths:
        Path(path).write_text("no image")
    return Dataset.from_dict({"image": paths, **ROWS}, features=Features(FEATURES)).with_transform(refuse)


def test_a_column_is_read_without_opening_images(on_disk):
    assert column(on_disk, "identity") == [3, 4, 3]


def test_images_are_named_by_path_and_box(on_disk, tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in (0, 1, 1)]
    assert image_names(on_disk.remove_columns("bbox")) == paths
    names = image_names(on_disk)
    assert len(set(names)) == 3 and all(name.startswith(path) for name, path in zip(names, paths))


def test_stored_images_are_named_by_their_content():
    pictures = [noise_picture(seed) for seed in (1, 2, 1)]
    names = image_names(Dataset.from_dict({"image": pictures}, features=Features({"image": ImageFeature()})))
    assert names[0] == names[2] != names[1]


def test_the_protocol_uses_cameras_if_both_sets_have_them(on_disk):
    seen = on_disk.add_column("camera_id", [1, 2, 1])
    columns = protocol_columns(seen, seen)
    assert columns["query_cameras"] == columns["gallery_cameras"] == [1, 2, 1] and "query_images" not in columns
    columns = protocol_columns(seen, on_disk)
    assert columns["gallery_ids"] == [3, 4, 3] and columns["query_images"] == image_names(on_disk)
    assert "query_cameras" not in columns
