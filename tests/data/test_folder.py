"""Unusual image folders: wrapped, nested, with metadata of macOS."""

import logging
import os
import re
import unicodedata

import pytest

from dcal_hf.data import load_fgvc, load_reid, unlabelled_images
from dcal_hf.data.image_files import misplaced_images

from helpers import noise_picture


def save(root, *paths):
    for number, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        noise_picture(number).save(file)
    return root


def names(dataset, root):
    return {image.filename.removeprefix(f"{root}/") for image in dataset["image"]}


BIRDS = [f"{split}/{name}/{digit}.png" for split in ("train", "test") for name in ("finch", "wren") for digit in "12"]


def load(kind, root):
    if kind == "fgvc":
        return load_fgvc("imagefolder", root, validation_fraction=0)["train"]
    return load_reid(root, splits=("train",), test_fraction=0)["train"]


@pytest.mark.parametrize("kind", ["fgvc", "reid"])
def test_a_wrapper_folder_is_skipped(tmp_path, kind):
    save(tmp_path, *(f"birds-main/birds/{path}" for path in BIRDS))
    save(tmp_path, "__MACOSX/birds-main/x.png")
    assert names(load(kind, tmp_path), tmp_path) == {f"birds-main/birds/{p}" for p in BIRDS if p.startswith("train")}


@pytest.mark.parametrize("kind", ["fgvc", "reid"])
def test_macos_metadata_is_not_read(tmp_path, kind, caplog):
    root = save(tmp_path, "finch/1.png", "wren/2.png", "__MACOSX/finch/3.png", "finch/._1.png", "finch/__MACOSX/4.png")
    with caplog.at_level(logging.WARNING):
        assert names(load(kind, root), root) == {"finch/1.png", "wren/2.png"}
    assert caplog.records == []
    assert len(unlabelled_images(root)) == 2


@pytest.mark.parametrize("kind, noun", [("fgvc", "class"), ("reid", "identity")])
def test_all_class_folders_without_images_are_named(tmp_path, kind, noun):
    save(tmp_path, "finch/2019/1.png", "finch/2020/1.png", "wren/1.png")
    (tmp_path / "tit").mkdir()
    sentence = (
        f"the {noun} folder {tmp_path}/finch contains no images, only folders (2019, 2020); put the images directly "
        f"into it or, if these are the {noun} folders, move them up. 1 more contain none: tit"
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load(kind, tmp_path)


@pytest.mark.parametrize("name", [b"\xe9t\xe9/1.png", b"wren/\xe9t\xe9.png"])
@pytest.mark.parametrize("load", [load_fgvc, load_reid, unlabelled_images])
def test_a_name_that_is_not_utf_8_is_shown(tmp_path, load, name):
    """Archives of old systems have such names."""
    save(tmp_path, "wren/1.png", "wren/2.png", os.fsdecode(name))
    (tmp_path / os.fsdecode(b"wren/\xe9.txt")).write_text("")
    with pytest.raises(ValueError, match=f"^the name of {re.escape(str(tmp_path))}.*udce9.* is not UTF-8: rename it"):
        load(tmp_path)


def test_names_of_macos_and_of_other_systems_are_the_same(tmp_path):
    names = [unicodedata.normalize(form, "Möwe") for form in ("NFD", "NFC")]
    birds = save(tmp_path / "birds", *(f"{split}/{name}/1.png" for split, name in zip(("train", "test"), names)))
    save(birds, f"train/{names[1]}/2.png", "train/wren/3.png")
    dataset = load_fgvc(birds, validation_fraction=0)
    assert dataset["train"].features["label"].names == ["Möwe", "wren"]
    assert [part["label"][:] for part in dataset.values()] == [[0, 0, 1], [0]]

    turtles = save(tmp_path / "turtles", f"query/{names[0]}/1.png", f"gallery/{names[1]}/1.png")
    dataset = load_reid(turtles, splits=("query", "gallery"))
    assert dataset["query"]["identity"][:] == dataset["gallery"]["identity"][:]


def test_a_single_class_is_not_a_wrapper(tmp_path):
    save(tmp_path, "finch/1.png", "finch/2.png")
    assert names(load("fgvc", tmp_path), tmp_path) == {"finch/1.png", "finch/2.png"}


def test_misplaced_images(tmp_path):
    root = save(tmp_path, *BIRDS, "loose.png", "train/loose.png", "train/finch/more/deep/a.png", "train/wren/.b/c.png")
    (root / "train" / "notes.txt").write_text("")
    found = misplaced_images([str(root / path) for path in BIRDS])
    assert [str(path.relative_to(root)) for path in found] == [
        "loose.png", "train/loose.png", "train/finch/more/deep/a.png"
    ]


def test_folders_of_splits_may_have_capitals(tmp_path):
    birds = save(tmp_path / "birds", "Train/finch/1.png", "VAL/finch/2.png", "Test/finch/3.png")
    dataset = load_fgvc(birds, splits=("train", "validation", "test"))
    assert {split: len(part) for split, part in dataset.items()} == {"train": 1, "validation": 1, "test": 1}

    turtles = save(tmp_path / "turtles", "Query/berta/1.png", "Gallery/berta/2.png")
    dataset = load_reid(turtles, splits=("query", "gallery"))
    assert {split: len(part) for split, part in dataset.items()} == {"query": 1, "gallery": 1}

    # A single folder is no wrapper if it is a split.
    assert len(load_fgvc(save(tmp_path / "all", "TRAIN/finch/1.png"), validation_fraction=0)["train"]) == 1

    save(birds, "train/finch/4.png")
    with pytest.raises(ValueError, match="birds has both Train and train; keep or rename one of them"):
        load_fgvc(birds)
