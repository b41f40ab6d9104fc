import numpy as np
import pytest
from datasets import ClassLabel, Image

from dcal_hf.data import SYNTHETIC_CLASSES, draw_bird, synthetic_fgvc


def draw(label, seed, image_size=96):
    return np.asarray(draw_bird(label, np.random.default_rng(seed), image_size)).astype(int)


@pytest.fixture(scope="module")
def small():
    return synthetic_fgvc(num_train=200, num_validation=100, num_test=35, image_size=64)


def test_a_bird_is_a_function_of_its_arguments():
    assert np.array_equal(draw(3, seed=5), draw(3, seed=5))
    assert not np.array_equal(draw(3, seed=5), draw(3, seed=6))


@pytest.mark.parametrize("image_size", [64, 96, 131])
def test_a_bird_has_the_requested_size(image_size):
    image = draw_bird(0, np.random.default_rng(0), image_size)
    assert image.size == (image_size, image_size)
    assert image.mode == "RGB"


@pytest.mark.parametrize("image_size", [64, 96])
@pytest.mark.parametrize("seed", range(8))
def test_classes_differ_only_in_the_mark(seed, image_size):
    birds = np.stack([draw(label, seed, image_size) for label in range(len(SYNTHETIC_CLASSES))])
    differing = (birds != birds[0]).any(axis=(0, 3))
    assert differing.mean() < 0.07
    rows, columns = np.nonzero(differing)
    assert np.ptp(rows) < 0.28 * image_size
    assert np.ptp(columns) < 0.28 * image_size


@pytest.mark.parametrize("seed", range(8))
def test_any_two_classes_differ_clearly(seed):
    birds = [draw(label, seed, image_size=64) for label in range(len(SYNTHETIC_CLASSES))]
    for first in range(len(birds)):
        for second in range(first):
            contrast = np.abs(birds[first] - birds[second]).mean(axis=2)
            assert (contrast > 80).sum() >= 20


def test_the_label_does_not_change_the_random_state():
    states = []
    for label in range(len(SYNTHETIC_CLASSES)):
        rng = np.random.default_rng(0)
        draw_bird(label, rng)
        states.append(rng.bit_generator.state)
    assert all(state == states[0] for state in states)


def test_splits_have_their_sizes_and_the_same_features(small):
    assert {split: len(part) for split, part in small.items()} == {"train": 200, "validation": 100, "test": 35}
    for part in small.values():
        assert part.features == {"image": Image(mode="RGB"), "label": ClassLabel(names=list(SYNTHETIC_CLASSES))}
        assert part[0]["image"].size == (64, 64)


def test_classes_are_balanced(small):
    for part in small.values():
        counts = np.bincount(part["label"][:], minlength=len(SYNTHETIC_CLASSES))
        assert np.ptp(counts) <= 1


def test_images_are_distinct(small):
    records = [record for part in small.values() for record in part.cast_column("image", Image(decode=False))["image"]]
    assert len({record["bytes"] for record in records}) == 335


def test_a_larger_data_set_starts_with_the_smaller_one(small):
    larger = synthetic_fgvc(num_train=1, num_validation=0, num_test=0, image_size=64)
    assert larger["train"][0]["image"].tobytes() == small["train"][0]["image"].tobytes()
    other = synthetic_fgvc(num_train=1, num_validation=0, num_test=0, image_size=64, seed=1)
    assert other["train"][0]["image"].tobytes() != small["train"][0]["image"].tobytes()


@pytest.fixture(scope="module")
def many():
    labels = np.arange(1000) % len(SYNTHETIC_CLASSES)
    return labels, np.stack([draw(label, [7, index], image_size=64) for index, label in enumerate(labels)])


def accuracy_of_nearest_class_mean(labels, features):
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    classes = np.unique(labels[:500])
    means = np.stack([features[:500][labels[:500] == label].mean(axis=0) for label in classes])
    nearest = np.linalg.norm(features[500:, None] - means, axis=2).argmin(axis=1)
    return (nearest == labels[500:]).mean()


def test_colour_statistics_do_not_reveal_the_class(many):
    labels, pixels = many
    statistics = np.concatenate([pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2))], axis=1)
    assert accuracy_of_nearest_class_mean(labels, statistics) < 0.16


def test_dark_and_light_pixels_hardly_reveal_the_class(many):
    labels, pixels = many
    grey = pixels.mean(axis=3)
    counts = np.stack([((grey >= low) & (grey < low + 32)).sum(axis=(1, 2)) for low in range(0, 256, 32)], axis=1)
    assert accuracy_of_nearest_class_mean(labels, counts) < 0.2


def test_the_position_of_the_mark_does_not_reveal_the_class(many):
    labels, pixels = many
    assert accuracy_of_nearest_class_mean(labels, pixels[:, ::8, ::8].reshape(len(labels), -1)) < 0.2
