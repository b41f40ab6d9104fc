from collections import Counter

import numpy as np
import pytest
from datasets import Image, Value

from dcal_hf.data import synthetic_reid
from dcal_hf.data.reid_synthetic import Camera


SIZES = {"num_train_identities": 20, "num_test_identities": 8, "num_cameras": 3, "images_per_camera": 3}


@pytest.fixture(scope="module")
def small():
    return synthetic_reid(**SIZES, num_distractors=10)


def pixels(part):
    return np.stack([np.asarray(image) for image in part["image"]]).astype(float)


def test_splits_have_their_sizes(small):
    sizes = {split: len(part) for split, part in small.items()}
    assert sizes == {"train": 20 * 3 * 3, "query": 8 * 3, "gallery": 8 * 3 * 2 + 10}


def test_columns(small):
    assert small["query"].features == small["gallery"].features
    assert small["query"].features == {
        "image": Image(mode="RGB"), "identity": Value("int64"), "camera_id": Value("int64")
    }
    assert small["train"].column_names == ["image", "identity", "camera_id", "label"]
    assert small["query"][0]["image"].size == (64, 64)


def test_labels_are_the_positions_of_the_identities(small):
    train = small["train"]
    names = train.features["label"].int2str(train["label"][:])
    assert list(map(int, names)) == train["identity"][:]
    assert sorted(set(train["label"])) == list(range(20))


def test_test_identities_are_not_in_train(small):
    train, query, gallery = (set(small[split]["identity"]) for split in ("train", "query", "gallery"))
    assert train == set(range(1, 21))
    assert query == set(range(21, 29))
    assert gallery == query | {0}


def test_cameras_have_equally_many_images_of_each_individual(small):
    for split, times in (("train", 3), ("query", 1)):
        part = small[split]
        counts = Counter(zip(part["identity"], part["camera_id"]))
        assert set(counts.values()) == {times}
        assert len(counts) == 3 * len(set(part["identity"]))
    distractors = small["gallery"].filter(lambda identity: identity == 0, input_columns="identity")
    assert Counter(distractors["camera_id"]) == {1: 4, 2: 3, 3: 3}


def test_images_are_distinct(small):
    records = [record for part in small.values() for record in part.cast_column("image", Image(decode=False))["image"]]
    assert len({record["bytes"] for record in records}) == sum(map(len, small.values()))


def test_the_seed_decides(small):
    again = synthetic_reid(**SIZES, num_distractors=10)
    assert all(np.array_equal(pixels(small[split]), pixels(again[split])) for split in small)
    other = synthetic_reid(**SIZES, num_distractors=10, seed=1)
    assert not np.array_equal(pixels(small["query"]), pixels(other["query"]))


def test_images_of_a_camera_have_its_background_and_light(small):
    train = small["train"]
    features = pixels(train).mean(axis=(1, 2))
    cameras = np.array(train["camera_id"][:])
    means = np.stack([features[::2][cameras[::2] == camera].mean(axis=0) for camera in (1, 2, 3)])
    nearest = np.linalg.norm(features[1::2, None] - means, axis=2).argmin(axis=1) + 1
    assert (nearest == cameras[1::2]).mean() > 0.95


def test_raw_pixels_do_not_find_an_individual_in_another_camera():
    birds = synthetic_reid(num_train_identities=1, num_test_identities=40, num_cameras=3, images_per_camera=2)
    query, gallery = birds["query"], birds["gallery"]
    vectors = [pixels(part)[:, ::4, ::4].reshape(len(part), -1) for part in (query, gallery)]
    distances = np.linalg.norm(vectors[0][:, None] - vectors[1], axis=2)
    same_camera = np.array(query["camera_id"][:])[:, None] == np.array(gallery["camera_id"][:])
    nearest = np.where(same_camera, np.inf, distances).argmin(axis=1)
    hits = np.array(gallery["identity"][:])[nearest] == np.array(query["identity"][:])
    assert hits.mean() < 0.4


@pytest.mark.parametrize("number", range(4))
def test_individuals_differ_only_in_their_traits(number):
    camera = Camera.place(number, side=192, seed=0)

    def shoot(*traits):
        return np.asarray(camera.shoot(traits, np.random.default_rng(number), side=192)).astype(int)

    one = shoot(0, 0, 0, 0)
    for place in range(4):
        other = shoot(*np.eye(4, dtype=int)[place] * 3)
        difference = np.abs(one - other).max(axis=2)
        assert 20 <= (difference > 60).sum() < 0.08 * 64 * 64
    assert np.array_equal(one, shoot(0, 0, 0, 0))
