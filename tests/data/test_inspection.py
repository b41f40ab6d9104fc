"""The check of a data set before training: what it finds and removes."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import ExifTags
from PIL import Image as PILImage

from dcal_hf.data import inspect_images, leave_out, load_fgvc

from helpers import noise_picture


def save(root, **seeds):
    """Saves noise images at the paths `split/class/name`; equal seeds give equal files."""
    for path, seed in seeds.items():
        file = root / f"{path}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise_picture(seed).save(file)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path, **{
        "train/finch/1": 1, "train/finch/2": 2, "train/finch/3": 3, "train/finch/again": 1,
        "train/wren/4": 4, "train/wren/5": 5, "train/wren/both": 2, "train/wren/tested": 9,
        "test/finch/8": 8, "test/wren/9": 9,
    })
    (tmp_path / "train/wren/cut.png").write_bytes((tmp_path / "train/wren/5.png").read_bytes()[:-200])
    (tmp_path / "train/wren/page.jpg").write_text("<html>not found</html>")
    PILImage.new("RGB", (1, 1)).save(tmp_path / "test/finch/pixel.gif")
    return tmp_path


FOUND = {
    ("train/finch/2.png", "in two classes"),
    ("train/finch/again.png", "repeated"),
    ("train/wren/both.png", "in two classes"),
    ("train/wren/cut.png", "unreadable"),
    ("train/wren/page.jpg", "unreadable"),
    ("train/wren/tested.png", "in two splits"),
    ("test/finch/pixel.gif", "tiny"),
}


def as_encoded(dataset: DatasetDict) -> DatasetDict:
    """The same images encoded in the table, as in data sets of the Hub."""
    def encoded(part: Dataset) -> Dataset:
        records = part.cast_column("image", Image(decode=False))["image"]
        images = [{"path": record["path"], "bytes": Path(record["path"]).read_bytes()} for record in records]
        return Dataset.from_dict({"image": images, "label": part["label"][:]}, features=part.features)

    return DatasetDict({split: encoded(part) for split, part in dataset.items()})


@pytest.mark.parametrize("encoded", [False, True])
def test_all_problems_are_found(folder, encoded):
    dataset = load_fgvc("imagefolder", folder, validation_fraction=0, warn_duplicates=False)
    findings = inspect_images(as_encoded(dataset) if encoded else dataset, "label")
    found = {(str(finding.image).removeprefix(f"{folder}/"), finding.problem): finding.detail for finding in findings}
    assert set(found) == FOUND and len(findings) == len(FOUND)
    assert found["train/wren/page.jpg", "unreadable"].startswith("not an image of the formats")
    assert found["train/wren/tested.png", "in two splits"].endswith("wren/9.png, in test")
    assert found["test/finch/pixel.gif", "tiny"] == "1 x 1 pixels"
    rows = {split: part.cast_column("image", Image(decode=False))["image"] for split, part in dataset.items()}
    assert all(rows[finding.split][finding.row]["path"] == finding.image for finding in findings)


def test_headers_miss_only_truncated_files(folder):
    dataset = load_fgvc("imagefolder", folder, validation_fraction=0, warn_duplicates=False)
    found = {finding.image.removeprefix(f"{folder}/") for finding in inspect_images(dataset, "label", decode=False)}
    assert found == {image for image, _ in FOUND} - {"train/wren/cut.png"}


def test_leave_out_keeps_all_other_images(folder):
    dataset = load_fgvc("imagefolder", folder, validation_fraction=0, warn_duplicates=False)
    dataset = leave_out(dataset, inspect_images(dataset, "label"))
    assert inspect_images(dataset, "label") == []
    kept = {record["path"].removeprefix(f"{folder}/") for part in dataset.values()
            for record in part.cast_column("image", Image(decode=False))["image"]}
    assert kept == {"train/finch/1.png", "train/finch/3.png", "train/wren/4.png", "train/wren/5.png",
                    "test/finch/8.png", "test/wren/9.png"}


def test_a_copy_in_two_splits_may_also_be_in_two_classes(tmp_path):
    """Its class is as unknown as within a split. Numbers of classes with different names are not compared."""
    save(tmp_path, **{"train/finch/1": 1, "train/wren/2": 2, "validation/wren/same": 1, "validation/finch/3": 3})
    dataset = load_fgvc("imagefolder", tmp_path, warn_duplicates=False)
    findings = inspect_images(dataset, "label")
    assert [(one.split, one.problem) for one in findings] == [
        ("train", "in two classes"), ("validation", "in two classes"),
    ]
    assert findings[0].detail == f"also {tmp_path}/validation/wren/same.png"
    dataset["validation"] = dataset["validation"].cast_column("label", ClassLabel(names=["robin", "finch"]))
    assert [(one.split, one.problem) for one in inspect_images(dataset, "label")] == [("train", "in two splits")]


@pytest.mark.parametrize("decode", [True, False])
def test_boxes_are_checked_in_the_upright_photograph(tmp_path, decode):
    """Stored lying, 30 wide and 24 high, shown standing."""
    exif = PILImage.Exif()
    exif[ExifTags.Base.Orientation] = 6
    noise_picture(0).save(tmp_path / "phone.jpg", exif=exif)
    boxes = [[0, 0, 24, 30], [0, 22, 24, 8], [22, 0, 24, 30], [25, 0, 10, 10]]
    part = Dataset.from_dict({"image": [str(tmp_path / "phone.jpg")] * 4, "bbox": boxes, "identity": [0] * 4})
    findings = inspect_images(DatasetDict(train=part.cast_column("image", Image())), "identity", decode=decode)
    found = [(finding.row, finding.problem, finding.detail) for finding in findings]
    assert found[0] == (2, "tiny", "2 x 30 pixels")
    assert found[1][:2] == (3, "unreadable") and "nothing of the box" in found[1][2] and len(found) == 2


def test_a_split_without_usable_images_is_rejected(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>")
    features = Features({"image": Image(), "label": ClassLabel(names=["finch"])})
    part = Dataset.from_dict({"image": [str(tmp_path / "page.jpg")], "label": [0]}, features=features)
    dataset = DatasetDict(train=part)
    with pytest.raises(ValueError, match="train has no usable image: the first, .*page.jpg, is unreadable"):
        leave_out(dataset, inspect_images(dataset, "label"))


def test_two_parts_of_a_photograph_are_no_copies(tmp_path):
    noise_picture(0).save(tmp_path / "a.png")
    columns = {"image": [str(tmp_path / "a.png")] * 3, "label": [0, 1, 1]}
    part = Dataset.from_dict({**columns, "bbox": [[0, 0, 9, 9], [9, 0, 9, 9], [9, 0, 9, 9]]})
    for decode in (True, False):
        found = inspect_images(DatasetDict(train=part.cast_column("image", Image())), "label", decode=decode)
        assert [(finding.row, finding.problem) for finding in found] == [(2, "repeated")]
