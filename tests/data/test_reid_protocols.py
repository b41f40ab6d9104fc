"""Protocols against a loop over the table."""

import logging
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from datasets import Image as ImageFeature
from PIL import Image

from dcal_hf.data import load_reid
from dcal_hf.data.reid_protocols import Photographs, Split, describe_overlaps, describe_use


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("turtles")
    for number in range(80):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def frame():
    """80 photographs of nine individuals and unknown ones, over eleven days and without a day."""
    rng = np.random.default_rng(0)
    days = [f"2024-05-{day:02}" for day in range(10, 21)] + [None]
    return pandas.DataFrame({
        "path": [f"{number}.png" for number in range(80)],
        "identity": rng.choice([*"abcdefghi", "unknown"], 80),
        "date": rng.choice(days, 80),
    })


def load(frame, folder, **options):
    """Rows of the frame by split, in the frame's order."""
    dataset = load_reid(SimpleNamespace(df=frame, root=folder), **options)
    names = {}
    for split, part in dataset.items():
        records = part.cast_column("image", ImageFeature(decode=False))["image"]
        names[split] = [record["path"].rsplit("/", 1)[1] for record in records]
    by_path = frame.set_index("path")
    return {split: by_path.loc[paths].reset_index() for split, paths in names.items()}, dataset


def known(frame):
    return frame[frame["identity"] != "unknown"]


def test_closed_set(frame, folder, caplog):
    with caplog.at_level(logging.INFO):
        found, dataset = load(frame, folder, protocol="closed_set", query_fraction=0.25)
    assert found["train"].equals(found["gallery"])
    counts = known(frame)["identity"].value_counts()
    # A quarter of the images of each individual, at least one and not all.
    expected = {name: min(max(round(0.25 * count), 1), count - 1) for name, count in counts.items()}
    assert found["query"]["identity"].value_counts().to_dict() == expected
    both = pandas.concat([found["query"], found["gallery"]])
    assert sorted(both["path"]) == sorted(known(frame)["path"])
    num_unknown, num_queries = len(frame) - counts.sum(), sum(expected.values())
    assert f"query: {num_queries} images of 9 individuals" in caplog.text
    assert f"left out: {num_unknown} images of gallery of unknown individuals" in caplog.text
    assert "closed set: the gallery is train" in caplog.text
    overlap = f"train and gallery share {len(found['train'])} images and 9 individuals"
    assert f"train and query share 0 images and 9 individuals; {overlap}" in caplog.text
    assert dataset["train"].features["label"].names == sorted(counts.index)


def test_open_set(frame, folder, caplog):
    with caplog.at_level(logging.INFO):
        found, dataset = load(frame, folder, protocol="open_set", test_fraction=0.3)
    gallery_names, query = set(found["gallery"]["identity"]), found["query"]
    new = set(known(query)["identity"]) - gallery_names
    assert len(new) == 3 and len(gallery_names) == 6
    for name, rows in known(frame).groupby("identity"):
        count = (query["identity"] == name).sum()
        assert count == (len(rows) if name in new else min(max(round(0.2 * len(rows)), 1), len(rows) - 1))
    # Unknown individuals are new, each by itself.
    assert (query["identity"] == "unknown").sum() == (frame["identity"] == "unknown").sum()
    identities = np.array(dataset["query"]["identity"])
    unknown = identities[query["identity"] == "unknown"]
    assert len(set(unknown)) == len(unknown) and not set(unknown) & set(dataset["gallery"]["identity"])
    num_new = int((~query["identity"].isin(gallery_names)).sum())
    assert f"{num_new} queries of individuals that the gallery lacks; left out: nothing" in caplog.text
    assert set(load(frame, folder, protocol="open_set", seed=1)[0]["gallery"]["identity"]) != gallery_names


def test_by_time(frame, folder, caplog):
    with caplog.at_level(logging.INFO):
        found, _ = load(frame, folder, protocol="time", query_fraction=0.3)
    train, query, gallery = (found[split] for split in ("train", "query", "gallery"))
    assert train["date"].max() < query["date"].min()
    assert gallery.equals(train) and "unknown" not in set(train["identity"])
    dated = frame[frame["date"].notna()]
    cut = query["date"].min()
    assert sorted(query["path"]) == sorted(dated[dated["date"] >= cut]["path"])
    # The latest day that leaves enough.
    assert (dated["date"] >= cut).mean() >= 0.3 > (dated["date"] > cut).mean()
    assert sorted(train["path"]) == sorted(known(dated[dated["date"] < cut])["path"])
    num_unknown = ((dated["date"] < cut) & (dated["identity"] == "unknown")).sum()
    left_out = f"left out: {frame['date'].isna().sum()} images without a day, 1 image of train of unknown"
    assert left_out in caplog.text and num_unknown == 1
    assert f"the queries are from {cut} on" in caplog.text


def test_a_share_that_no_day_reaches_is_all_days_but_the_first(frame, folder):
    found, _ = load(frame, folder, protocol="time", query_fraction=0.99)
    assert set(found["train"]["date"]) == {frame["date"].min()}


@pytest.mark.parametrize("protocol", ["closed_set", "open_set"])
def test_splits_of_the_table_are_kept(frame, folder, protocol):
    """New individuals in test are left out of a closed set, and new in an open one."""
    rng = np.random.default_rng(1)
    frame["split"] = np.where((frame["identity"] == "a") | (rng.random(80) < 0.3), "test", "train")
    found, _ = load(frame, folder, protocol=protocol)
    train = known(frame[frame["split"] == "train"])
    assert found["train"].equals(found["gallery"]) and list(found["gallery"]["path"]) == list(train["path"])
    test = frame[frame["split"] == "test"]
    if protocol == "closed_set":
        test = known(test)[known(test)["identity"].isin(train["identity"])]
    assert list(found["query"]["path"]) == list(test["path"])
    assert ("a" in set(found["query"]["identity"])) == (protocol == "open_set")


def test_disjoint(frame, folder, caplog):
    """Unknown individuals are distractors in the gallery, and not trained on."""
    with caplog.at_level(logging.INFO):
        found, _ = load(frame, folder)
    names = {split: set(known(part)["identity"]) for split, part in found.items()}
    assert names["query"] <= names["gallery"] and not names["train"] & names["gallery"]
    assert len(names["train"]) == 6 and "unknown" not in {*found["train"]["identity"], *found["query"]["identity"]}
    unknown = frame[frame["identity"] == "unknown"]
    assert sorted(found["gallery"].query("identity == 'unknown'")["path"]) == sorted(unknown["path"])
    assert f"of 3 individuals, {len(unknown)} of them of unknown ones; left out: nothing" in caplog.text
    assert "train and query share 0 images and 0 individuals" in caplog.text


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        ({}, {"protocol": "closed"}, "protocol='closed' is unknown; choose one of disjoint, closed_set, open_set, "),
        ({"date": None}, {"protocol": "time"}, "a split by time needs images of two days, .* are of 0"),
        ({"split": ["test"] * 80}, {"protocol": "closed_set"}, "has neither train nor gallery"),
        (
            {"split": ["train"] * 79 + ["test"], "identity": ["a", "b"] * 39 + ["a", "new"]},
            {"protocol": "closed_set"},
            "no query of SimpleNamespace shows an individual of its gallery",
        ),
        (
            {"split": ["train"] * 79 + ["test"], "identity": ["a", "b"] * 40},
            {"protocol": "open_set"},
            "the open set needs queries of .* new ones, and SimpleNamespace has 1 of 1 in the gallery",
        ),
    ],
)
def test_impossible_protocols_raise_clear_errors(frame, folder, change, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        load(frame.assign(**change), folder, **options)


def test_protocols_need_a_custom_data_set(folder):
    with pytest.raises(ValueError, match="'market1501' has a protocol and cameras of its own"):
        load_reid("market1501", folder, protocol="closed_set")
    (folder / "ada").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="camera_column is a column of a table, and .* is none"):
        load_reid(folder, camera_column="date")


def test_one_image_and_one_individual_are_told_in_the_singular():
    photographs = Photographs(np.array([0, 0, 5]), np.array([False, False, True]), None, ["a", "b", "c"], None, "")
    split = Split({"train": np.array([0]), "query": np.array([2]), "gallery": np.array([1])}, Counter({"of x": 1}))
    assert describe_use(photographs, split) == (
        "train: 1 image of 1 individual; query: 1 image of 0 individuals, 1 of them of unknown ones; gallery: 1 image "
        "of 1 individual; 1 query of individuals that the gallery lacks; left out: 1 image of x"
    )
    assert "train and gallery share 0 images and 1 individual" in describe_overlaps(photographs, split.parts)
