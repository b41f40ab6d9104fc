"""Tables of individuals: parts of photographs, dates, individuals that nobody knows."""

import json
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from datasets import Image as ImageFeature
from PIL import Image

from dcal_hf.data import load_reid, open_image, read_images
from dcal_hf.data.reid_tables import parse_box, parse_day

from helpers import noise_picture


def write_photographs(folder, count):
    """Noise of 30 x 24 pixels, no two alike."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        noise_picture(number).save(folder / f"{number}.png")
    return [f"{number}.png" for number in range(count)]


def encoded(part):
    return part.cast_column("image", ImageFeature(decode=False))


@pytest.fixture
def frame(tmp_path):
    """Nine photographs, of three individuals and one that nobody knows."""
    return pandas.DataFrame({
        "path": write_photographs(tmp_path / "photographs", 9),
        "identity": ["ada", "ada", "rex", "rex", "unknown", "max", "max", "max", "Unknown"],
        "bbox": [[2, 3, 10, 8], [0, 0, 30, 24], None, [20, 4, 99, 8], None, [0.6, 1.4, 9.7, 7], None, None, None],
        "split": ["train"] * 5 + ["query"] + ["gallery"] * 3,
    })


@pytest.fixture(params=["csv", "parquet", "object"])
def source(request, tmp_path, frame):
    """The same table in three forms: text, lists in a file, and a frame in memory beside its folder."""
    if request.param == "object":
        return SimpleNamespace(df=frame, root=str(tmp_path / "photographs"))
    path = tmp_path / "photographs" / f"turtles.{request.param}"
    if request.param == "csv":
        boxes = frame["bbox"].map(lambda box: json.dumps(box) if isinstance(box, list) else "")
        frame.assign(bbox=boxes).to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


def test_boxes_are_cropped_when_read(source, frame):
    dataset = load_reid(source)
    pixels = [np.asarray(noise_picture(number)) for number in range(9)]
    expected = [pixels[0][3:11, 2:12], pixels[1], pixels[2], pixels[3][4:12, 20:]]
    read = list(read_images(encoded(dataset["train"])[:]))
    assert len(read) == 4 and all(np.array_equal(image, part) for image, part in zip(read, expected))
    (query,) = read_images(encoded(dataset["query"])[:])
    # Edges are rounded, as Pillow does.
    assert np.array_equal(query, pixels[5][1:8, 1:10])


def test_unknown_individuals_are_no_individual(source):
    dataset = load_reid(source)
    assert dataset["train"].features["label"].names == ["ada", "rex"]
    gallery = dataset["gallery"]["identity"][:]
    assert len(set(gallery[:2])) == 1 and gallery[2] not in gallery[:2]
    name = dataset["gallery"].features["identity"].int2str(gallery[2])
    assert name == "unknown, row 9"


def test_unknown_individuals_among_numbers_have_numbers_of_their_own(tmp_path):
    frame = pandas.DataFrame({
        "image": write_photographs(tmp_path, 8),
        "identity": ["1", "1", "-4", "5", "5", "unknown", "unknown", "-1"],
        "split": ["train"] * 3 + ["query"] + ["gallery"] * 4,
    })
    frame.to_csv(tmp_path / "rows.csv", index=False)
    assert load_reid(tmp_path / "rows.csv")["gallery"]["identity"][:] == [5, -5, -6]


def test_the_day_may_stand_for_the_camera(tmp_path):
    """An individual's other photographs of one day do not count; without a day, all are of one unknown day."""
    dates = ["2024-05-31 10:00:00", "2024-05-31T23:59", "2024:06:01 00:01:02", "", "2024"]
    frame = pandas.DataFrame({
        "image": write_photographs(tmp_path, 6),
        "identity": ["rex"] + ["ada"] * 5,
        "date": ["20240531"] + dates,
        "split": ["train", "query"] + ["gallery"] * 4,
    })
    frame.to_csv(tmp_path / "rows.csv", index=False)
    dataset = load_reid(tmp_path / "rows.csv", camera_column="date")
    names = dataset["gallery"].features["camera_id"].int2str(dataset["gallery"]["camera_id"][:])
    assert names == ["2024-05-31", "2024-06-01", "", ""]
    assert dataset["query"]["camera_id"][0] == dataset["gallery"]["camera_id"][0]
    assert "camera_id" not in load_reid(tmp_path / "rows.csv")["query"].column_names
    with pytest.raises(ValueError, match="rows.csv has no column 'side'"):
        load_reid(tmp_path / "rows.csv", camera_column="side")


@pytest.mark.parametrize(
    ("value", "box"),
    [
        ("[1, 2, 3.5, 4]", [1, 2, 3.5, 4]),
        ("1 2 3.5 4", [1, 2, 3.5, 4]),
        ("(1,2,3.5,4)", [1, 2, 3.5, 4]),
        ("[1.  2.  3.5 4. ]", [1, 2, 3.5, 4]),
        (np.array([1, 2, 3, 4]), [1, 2, 3, 4]),
        ("", None),
        (None, None),
        (float("nan"), None),
        ([float("nan")] * 4, None),
    ],
)
def test_a_box_has_several_forms(value, box):
    assert parse_box(value) == box


@pytest.mark.parametrize("value", ["1 2 3", "[1, 2, 0, 4]", "left", "[1", [1, 2, 3, float("nan")], 7])
def test_a_bad_box_is_named_with_its_row_and_column(tmp_path, value):
    paths = write_photographs(tmp_path, 2)
    frame = pandas.DataFrame({"path": paths, "identity": ["a", "b"], "bbox": ["", value]})
    source = SimpleNamespace(df=frame, root=tmp_path)
    with pytest.raises(ValueError, match=r"SimpleNamespace has the bbox .* in row 2, column 'bbox': it must be \["):
        load_reid(source)


@pytest.mark.parametrize(
    ("value", "day"),
    [
        *((full, "2024-05-31") for full in ("2024-05-31", 20240531, "2024/05/31 12:00")),
        (pandas.Timestamp(2024, 5, 31, 9), "2024-05-31"),
        *((partial, "") for partial in ("2024-05", 2024, "", None, pandas.NaT)),
    ],
)
def test_a_date_has_several_forms(value, day):
    assert parse_day(value) == day


@pytest.mark.parametrize("value", ["31/05/2024", "2024-13-01", "May 2024", 7])
def test_a_bad_date_is_named_with_its_row_and_column(tmp_path, value):
    frame = pandas.DataFrame({"path": write_photographs(tmp_path, 2), "identity": ["a", "b"], "date": ["", value]})
    with pytest.raises(ValueError, match="has the date .* in row 2, column 'date': it must begin with year, month"):
        load_reid(SimpleNamespace(df=frame, root=tmp_path))


def test_a_box_is_of_the_upright_image(tmp_path):
    picture = noise_picture(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(np.asarray(picture), -1)
    cropped = open_image(tmp_path / "turned.png", bbox=[1, 2, 20, 25])
    assert np.array_equal(cropped, upright[2:27, 1:21])


def test_a_box_outside_of_its_image_is_named(tmp_path):
    write_photographs(tmp_path, 1)
    with pytest.raises(ValueError, match=r"0.png: nothing of the box .* = \[30, 0, 5, 5\] is in its \(30, 24\)"):
        open_image(tmp_path / "0.png", bbox=[30, 0, 5, 5])


def test_two_animals_in_a_photograph_are_no_duplicates(tmp_path, caplog):
    (path,) = write_photographs(tmp_path, 1)
    boxes = [[0, 0, 9, 24], [9, 0, 9, 24], [0, 0, 30, 9], [20, 0, 9, 24]]
    columns = {"path": path, "identity": ["a", "b", "b", "c"], "split": ["train", "query", "database", "database"]}
    dataset = load_reid(SimpleNamespace(df=pandas.DataFrame({**columns, "bbox": boxes}), root=tmp_path))
    assert len(dataset["gallery"]) == 2 and not [record for record in caplog.records if record.levelname == "WARNING"]
