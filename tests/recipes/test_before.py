"""The check of the images before training."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from dcal_hf.data import Finding, load_fgvc, unlabelled_images

from helpers import noise_picture


@pytest.fixture
def before(import_recipe):
    return import_recipe("before")


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images: one image is damaged, one is also in test, and one is outside the class folders."""
    for number in range(6):
        path = tmp_path / "birds" / "train" / ("finch" if number < 3 else "wren") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_picture(number).save(path)
    path.write_bytes(path.read_bytes()[:300])
    for name, seed in (("test/finch/7.png", 7), ("test/finch/again.png", 1), ("train/loose.png", 8)):
        (tmp_path / "birds" / name).parent.mkdir(parents=True, exist_ok=True)
        noise_picture(seed).save(tmp_path / "birds" / name)
    return tmp_path / "birds"


@pytest.fixture
def check(before, folder, tmp_path):
    def run(distractors=None, **options):
        dataset = load_fgvc("imagefolder", folder, validation_fraction=0, warn_duplicates=False)
        dataset = dataset.cast_column("image", Image(decode=False))
        training_args = SimpleNamespace(process_index=0, disable_tqdm=True, output_dir=str(tmp_path / "out"))
        arguments = before.CheckArguments(**options)
        splits = ["train", "test"]
        return before.check_data(dataset, splits, "label", arguments, training_args, True, distractors)

    return run


def listed(tmp_path) -> list[list[str]]:
    with open(tmp_path / "out" / "data_check.csv", newline="") as file:
        return list(csv.reader(file))[1:]


def test_all_problems_are_reported_at_once(check, folder, tmp_path, capsys):
    with pytest.raises(ValueError, match="1 of 8 images cannot be read, .*/5.png: .* --skip_broken.*data_check.csv"):
        check()
    rows = listed(tmp_path)
    assert [row[:3] for row in rows] == [
        ["train", "train/finch/1.png", "in two splits"],
        ["train", "train/wren/5.png", "unreadable"],
        ["", "train/loose.png", "misplaced"],
    ]
    assert [row[4] for row in rows] == ["no", "no", "not read"]
    printed = capsys.readouterr().out
    assert f"Of the images in {folder}" in printed and "1 misplaced:\n    train/loose.png" in printed
    assert "train/finch/1.png (also test/finch/again.png, in test)" in printed


def test_skip_broken_leaves_the_images_out_and_reports_their_number(check, before, tmp_path, capsys):
    dataset, _ = check(skip_broken=True)
    assert {split: len(part) for split, part in dataset.items()} == {"train": 4, "test": 2}
    assert "Left out: 2. All are listed in" in capsys.readouterr().out
    assert [row[4] for row in listed(tmp_path)] == ["yes", "yes", "not read"]
    before.print_splits("birds", dataset, ["train", "test"], "label", "classes")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [["train", "4", "2", "finch", "(2)"], ["test", "2", "1", "wren", "(0)"]]


def test_paths_are_shortened_only_by_a_common_folder(before, tmp_path, capsys):
    """Paths of a table may be absolute or relative. Images in a data set have none, but distractors do."""
    paths = [str(tmp_path / "a" / "1.png"), "b/2.png"]
    for paths, folder in ([paths, ""], [[paths[1], "c/3.png"], ""], [paths[:1], str(tmp_path / "a")]):
        records = [{"path": path, "bytes": None} for path in paths]
        assert before.common_folder(DatasetDict(train=Dataset.from_dict({"image": records}))) == folder
    finding = Finding("distractors", 0, "/others/1.png", "repeated", "also /others/2.png")
    before.report([finding], [], False, "", str(tmp_path / "out"))
    assert listed(tmp_path) == [["distractors", "/others/1.png", "repeated", "also /others/2.png", "no"]]
    assert "    /others/1.png (also /others/2.png)\n" in capsys.readouterr().out


def test_unknown_individuals_are_counted_apart(before, capsys):
    names = ["ada", "rex", "unknown, row 7", "unknown, row 9"]
    features = Features({"identity": ClassLabel(names=names)})
    gallery = Dataset.from_dict({"identity": [0, 0, 1, 2, 3]}, features=features)
    dataset = {"query": Dataset.from_dict({"identity": [5, 5, 8, 8, 8, -2]}), "gallery": gallery}
    before.print_splits("turtles", dataset, [*dataset], "identity", "identities")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        "query 6 2 5 (2); 1 unknown individual", "gallery 5 2 rex (1); 2 unknown individuals"
    ]


def test_distractors_are_checked_and_compared_with_what_is_evaluated(check, tmp_path, capsys):
    """Of the images of another data set, one is damaged, one tiny, one there twice, and one is evaluated."""
    for name, seed in (("cut", 20), ("one", 21), ("tested", 7), ("two", 21), ("used", 22)):
        (tmp_path / "others" / "inner").mkdir(parents=True, exist_ok=True)
        noise_picture(seed).save(tmp_path / "others" / "inner" / f"{name}.png")
    (tmp_path / "others" / "inner" / "cut.png").write_bytes(b"no image")
    noise_picture(23, 3, 3).save(tmp_path / "others" / "small.png")
    dataset, distractors = check(unlabelled_images(tmp_path / "others"), skip_broken=True)
    assert set(dataset) == {"train", "test"}
    assert [Path(path).name for path in distractors["image"]] == ["one.png", "used.png"]
    found = {Path(row[1]).name: row[2:4] for row in listed(tmp_path) if row[0] == "distractors"}
    assert found["tested.png"] == ["in two splits", "also test/finch/7.png, in test"]
    assert found["two.png"][0] == "repeated" and found["small.png"] == ["tiny", "3 x 3 pixels"]
    assert found["cut.png"][0] == "unreadable" and len(found) == 4
    assert "and of the distractors,\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match="2 of 14 images cannot be read"):
        check(unlabelled_images(tmp_path / "others"))


def test_the_table_is_deleted_once_the_problems_are_fixed(check, folder, tmp_path):
    check(skip_broken=True)
    noise_picture(5).save(folder / "train" / "wren" / "5.png")
    for name in ("test/finch/again.png", "train/loose.png"):
        (folder / name).unlink()
    check()
    assert not (tmp_path / "out" / "data_check.csv").exists()


def test_without_the_check_no_image_is_opened(check, before):
    assert len(check(check_files="off")[0]["train"]) == 6
    with pytest.raises(ValueError, match="--skip_broken needs a check of the images"):
        before.CheckArguments(check_files="off", skip_broken=True)
