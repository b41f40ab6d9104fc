import logging
from collections import Counter

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from dcal_hf.data import load_fgvc, open_image, stratified_split


def write_image(path, color=(10, 200, 30), size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def write_folder(root, counts):
    """`counts` maps "<split>/<class>" to a number of images."""
    for folder, count in counts.items():
        for number in range(count):
            write_image(root / folder / f"{number}.png", color=(number, 0, 0))
    return str(root)


def paths(part):
    return [record["path"] for record in part.cast_column("image", datasets.Image(decode=False))["image"]]


def names(part):
    return part.features["label"].int2str(part["label"][:])


class TestStratifiedSplit:
    def test_parts_are_disjoint_and_complete(self):
        labels = np.random.default_rng(0).integers(0, 7, size=200)
        train, validation = stratified_split(labels, 0.2, seed=1)
        assert sorted([*train, *validation]) == list(range(200))
        assert list(train) == sorted(train)
        assert list(validation) == sorted(validation)

    @pytest.mark.parametrize(
        "size, fraction, expected",
        [(100, 0.15, 15), (20, 0.15, 3), (10, 0.5, 5), (3, 0.15, 1), (2, 0.9, 1), (5, 0.99, 4), (1, 0.9, 0)],
    )
    def test_size_of_the_part_of_a_class(self, size, fraction, expected):
        labels = [0] * 40 + [1] * size
        _, validation = stratified_split(labels, fraction, seed=0)
        assert sum(labels[index] == 1 for index in validation) == expected

    def test_the_seed_decides(self):
        labels = [0, 1] * 50
        first, again, other = (stratified_split(labels, 0.3, seed)[1].tolist() for seed in (3, 3, 4))
        assert first == again
        assert first != other

    def test_every_item_can_be_chosen(self):
        chosen = {index for seed in range(60) for index in stratified_split([5] * 8, 0.25, seed)[1].tolist()}
        assert chosen == set(range(8))


class TestFolder:
    def test_splits_classes_and_images(self, tmp_path):
        root = write_folder(tmp_path, {"train/owl": 2, "train/auk": 3, "val/auk": 1, "test/owl": 2})
        dataset = load_fgvc(root)
        assert list(dataset) == ["train", "validation", "test"]
        for part in dataset.values():
            assert part.column_names == ["image", "label"]
            assert part.features == {"image": datasets.Image(mode="RGB"), "label": ClassLabel(names=["auk", "owl"])}
        assert names(dataset["train"]) == ["auk"] * 3 + ["owl"] * 2
        assert names(dataset["validation"]) == ["auk"]
        assert names(dataset["test"]) == ["owl"] * 2
        assert paths(dataset["test"]) == [str(tmp_path / "test" / "owl" / f"{number}.png") for number in (0, 1)]
        assert dataset["train"][1]["image"].getpixel((0, 0)) == (1, 0, 0)

    @pytest.mark.parametrize("alias", ["validation", "val", "valid"])
    def test_names_of_the_validation_folder(self, alias, tmp_path):
        dataset = load_fgvc(write_folder(tmp_path, {"train/auk": 2, f"{alias}/auk": 1}))
        assert paths(dataset["validation"]) == [str(tmp_path / alias / "auk" / "0.png")]

    def test_two_validation_folders_are_rejected(self, tmp_path):
        with pytest.raises(ValueError, match="has both val and valid"):
            load_fgvc(write_folder(tmp_path, {"train/auk": 2, "valid/auk": 1, "val/auk": 1}))

    def test_class_folders_without_splits_are_train(self, tmp_path):
        dataset = load_fgvc(write_folder(tmp_path, {"owl": 10, "auk": 20}), validation_fraction=0.1)
        assert list(dataset) == ["train", "validation"]
        assert Counter(names(dataset["train"])) == {"auk": 18, "owl": 9}
        assert Counter(names(dataset["validation"])) == {"auk": 2, "owl": 1}
        assert len({*paths(dataset["train"]), *paths(dataset["validation"])}) == 30

    def test_test_is_kept_when_validation_is_split_off(self, tmp_path):
        dataset = load_fgvc(write_folder(tmp_path, {"train/auk": 10, "test/auk": 4}), validation_fraction=0.2)
        assert {split: len(part) for split, part in dataset.items()} == {"train": 8, "validation": 2, "test": 4}
        assert paths(dataset["test"]) == [str(tmp_path / "test" / "auk" / f"{number}.png") for number in range(4)]

    def test_the_seed_decides_the_validation_split(self, tmp_path):
        root = write_folder(tmp_path, {"auk": 30})
        first, again, other = (paths(load_fgvc(root, seed=seed)["validation"]) for seed in (1, 1, 2))
        assert first == again
        assert first != other

    def test_a_fraction_of_zero_gives_no_validation(self, tmp_path):
        dataset = load_fgvc(write_folder(tmp_path, {"auk": 3}), validation_fraction=0)
        assert {split: len(part) for split, part in dataset.items()} == {"train": 3}

    def test_imagefolder_with_data_dir(self, tmp_path):
        root = write_folder(tmp_path / "sub", {"train/auk": 2})
        expected = paths(load_fgvc(root)["train"])
        assert paths(load_fgvc("imagefolder", root)["train"]) == expected
        assert paths(load_fgvc(str(tmp_path), "sub")["train"]) == expected

    def test_images_are_not_opened_on_loading(self, tmp_path):
        write_folder(tmp_path, {"train/auk": 1})
        broken = tmp_path / "train" / "auk" / "zzz.JPG"
        broken.write_bytes(b"no image")
        part = load_fgvc(str(tmp_path), validation_fraction=0)["train"]
        assert len(part) == 2
        part = part.cast_column("image", datasets.Image(decode=False))
        with pytest.raises(ValueError, match=f"cannot read image {broken}"):
            open_image(part[1]["image"])

    def test_other_files_are_skipped_with_one_warning(self, tmp_path, caplog):
        root = write_folder(tmp_path, {"train/auk": 2, "train/owl": 2, "test/auk": 1})
        (tmp_path / "train" / ".cache").mkdir()
        for name in ("train/auk/notes.txt", "train/owl/Thumbs.db", "test/auk/notes.txt", "train/auk/.DS_Store", "x"):
            (tmp_path / name).write_text("x")
        with caplog.at_level(logging.WARNING):
            dataset = load_fgvc(root, validation_fraction=0)
        assert len(dataset["train"]) == 4
        messages = [record.getMessage() for record in caplog.records if record.name == "dcal_hf.data.image_files"]
        assert len(messages) == 1
        assert f"in the class folders of {root}: 3 entries, the first is " in messages[0]
        assert messages[0].endswith(str(tmp_path / "train" / "auk" / "notes.txt"))

    def test_hidden_files_cause_no_warning(self, tmp_path, caplog):
        root = write_folder(tmp_path, {"auk": 2})
        (tmp_path / "auk" / ".DS_Store").write_text("x")
        with caplog.at_level(logging.WARNING):
            load_fgvc(root)
        assert not [record for record in caplog.records if record.name.startswith("dcal_hf")]


class TestFolderErrors:
    def test_missing_folder(self, tmp_path):
        (tmp_path / "birds.csv").write_text("image,label")
        with pytest.raises(ValueError, match="birds.csv is a table, which only re-identification reads"):
            load_fgvc(str(tmp_path / "birds.csv"))
        with pytest.raises(FileNotFoundError, match="nowhere' is neither an existing folder nor the id"):
            load_fgvc(str(tmp_path / "nowhere"))
        with pytest.raises(FileNotFoundError, match="nowhere does not exist; check data_dir"):
            load_fgvc("imagefolder", tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match="nowhere does not exist; check data_dir"):
            load_fgvc(str(tmp_path), "nowhere")
        with pytest.raises(ValueError, match="needs data_dir"):
            load_fgvc("imagefolder")

    def test_no_train(self, tmp_path):
        with pytest.raises(ValueError, match="has no train split; it has val, test"):
            load_fgvc(write_folder(tmp_path, {"val/auk": 1, "test/auk": 1}))

    def test_no_class_folders(self, tmp_path):
        write_image(tmp_path / "a.png")
        with pytest.raises(ValueError, match=f"{tmp_path} contains no class folders"):
            load_fgvc(str(tmp_path))

    def test_an_empty_class_folder_is_named(self, tmp_path):
        root = write_folder(tmp_path, {"train/auk": 1})
        (tmp_path / "train" / "owl").mkdir()
        with pytest.raises(ValueError, match=f"class folder {tmp_path / 'train' / 'owl'} contains no images"):
            load_fgvc(root)

    @pytest.mark.parametrize("split, folder", [("validation", "val"), ("test", "test")])
    def test_a_class_that_train_lacks_is_named(self, split, folder, tmp_path):
        with pytest.raises(ValueError, match=f"{split} of {tmp_path} contains the class 'owl', which train lacks"):
            load_fgvc(write_folder(tmp_path, {"train/auk": 2, f"{folder}/auk": 1, f"{folder}/owl": 1}))

    def test_classes_of_one_image_have_no_validation(self, tmp_path):
        with pytest.raises(ValueError, match="each of its classes has a single image.*validation_fraction=0"):
            load_fgvc(write_folder(tmp_path, {"auk": 1, "owl": 1}))

    def test_arguments(self, tmp_path):
        root = write_folder(tmp_path, {"auk": 3})
        with pytest.raises(ValueError, match="validation_fraction must be .* not 1"):
            load_fgvc(root, validation_fraction=1)
        with pytest.raises(ValueError, match="there is no split 'dev'"):
            load_fgvc(root, splits=("dev",))


class TestSplits:
    def test_only_the_requested_splits_are_returned(self, tmp_path):
        root = write_folder(tmp_path, {"train/auk": 10, "test/auk": 4})
        dataset = load_fgvc(root, splits=("test", "train"), validation_fraction=0.2)
        assert {split: len(part) for split, part in dataset.items()} == {"test": 4, "train": 8}

    def test_a_missing_split_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=f"{tmp_path} has no split 'test', .* it has train, validation"):
            load_fgvc(write_folder(tmp_path, {"auk": 3}), splits=("train", "test"))


def hub_set(labels, feature, image_column="image", label_column="label", **others):
    """A data set as loaded from the Hub; `labels` maps splits to labels."""
    features = {image_column: datasets.Image(), label_column: feature, "note": Value("string"), **others}
    parts = {}
    for split, values in labels.items():
        columns = {
            image_column: [Image.new("L", (4, 4), number) for number in range(len(values))],
            label_column: values,
            "note": ["x"] * len(values),
        }
        parts[split] = Dataset.from_dict(columns, features=Features(features))
    return DatasetDict(parts)


class TestHub:
    def test_columns_splits_and_arguments(self, hub):
        labels = {"train": [1, 0, 1], "valid": [0], "test": [1], "extra": [0]}
        calls = hub(hub_set(labels, ClassLabel(names=["owl", "auk"]), image_column="img", label_column="species"))
        dataset = load_fgvc("who/birds", "sub", config_name="small", image_column="img", label_column="species",
                            revision="v1", token="secret", cache_dir="cache")
        assert list(dataset) == ["train", "validation", "test"]
        for part in dataset.values():
            assert part.features == {"image": datasets.Image(mode="RGB"), "label": ClassLabel(names=["owl", "auk"])}
        assert names(dataset["train"]) == ["auk", "owl", "auk"]
        assert dataset["train"][2]["image"].getpixel((0, 0)) == (2, 2, 2)
        given = {"data_dir": "sub", "revision": "v1", "token": "secret", "cache_dir": "cache"}
        assert calls == [(("who/birds", "small"), given)]

    def test_strings_become_classes_in_the_same_order_everywhere(self, hub):
        hub(hub_set({"train": ["owl", "auk", "emu"], "validation": ["owl"], "test": ["emu", "owl"]}, Value("string")))
        dataset = load_fgvc("who/birds")
        assert {tuple(part.features["label"].names) for part in dataset.values()} == {("auk", "emu", "owl")}
        assert dataset["test"]["label"][:] == [1, 2]

    def test_integers_become_classes_in_numeric_order(self, hub):
        hub(hub_set({"train": [10, 2, -1, 2], "validation": [10]}, Value("int32")))
        dataset = load_fgvc("who/birds")
        assert dataset["train"].features["label"].names == ["-1", "2", "10"]
        assert dataset["train"]["label"][:] == [2, 1, 0, 1]
        assert dataset["validation"]["label"][:] == [2]

    def test_validation_is_taken_from_train_of_the_hub(self, hub):
        hub(hub_set({"train": [0] * 10 + [1] * 10, "test": [0]}, ClassLabel(names=["owl", "auk"])))
        dataset = load_fgvc("who/birds", validation_fraction=0.2)
        assert Counter(names(dataset["validation"])) == {"owl": 2, "auk": 2}
        assert len(dataset["train"]) == 16

    def test_missing_columns_are_listed(self, hub):
        hub(hub_set({"train": [0]}, Value("int64"), image_column="img", label_column="species"))
        with pytest.raises(ValueError, match="no column 'image' and no column 'label'; it has img, species, note"):
            load_fgvc("who/birds")
        with pytest.raises(ValueError, match="no column 'label'; it has"):
            load_fgvc("who/birds", image_column="img")

    def test_columns_of_the_wrong_kind_are_named(self, hub):
        hub(hub_set({"train": [0.5]}, Value("float32")))
        with pytest.raises(ValueError, match="column 'label' of who/birds holds .*float32"):
            load_fgvc("who/birds")
        with pytest.raises(ValueError, match="column 'note' of who/birds holds .*string.* not images"):
            load_fgvc("who/birds", image_column="note")

    def test_no_train(self, hub):
        hub(hub_set({"test": [0], "all": [0]}, ClassLabel(names=["owl"])))
        with pytest.raises(ValueError, match="who/birds has no train split; it has test, all"):
            load_fgvc("who/birds")

    def test_a_class_that_train_lacks_is_named(self, hub):
        hub(hub_set({"train": [0, 0], "test": [0, 1]}, ClassLabel(names=["owl", "auk"])))
        with pytest.raises(ValueError, match="test of who/birds contains the class 'auk', which train lacks"):
            load_fgvc("who/birds")

    @pytest.mark.parametrize("unlabelled", [-1, None])
    def test_rows_without_a_label(self, hub, unlabelled):
        hub(hub_set({"train": [0, 0], "test": [unlabelled, 0, unlabelled]}, ClassLabel(names=["owl"])))
        with pytest.raises(ValueError, match="test of who/birds has 2 rows without a label"):
            load_fgvc("who/birds")
        assert list(load_fgvc("who/birds", splits=("train", "validation"))) == ["train", "validation"]

    def test_the_error_for_unknown_names_mentions_folder_and_hub(self):
        with pytest.raises(FileNotFoundError, match="'nobody/no-such-set' is not an existing folder, and the Hub"):
            load_fgvc("nobody/no-such-set")


def test_built_in_data_set(monkeypatch):
    stand_in = hub_set({"train": [0], "validation": [0], "test": [0]}, ClassLabel(names=["owl"]))
    monkeypatch.setattr("dcal_hf.data.fgvc.synthetic_fgvc", lambda: stand_in)
    assert list(load_fgvc("drawn")) == ["train", "validation", "test"]
