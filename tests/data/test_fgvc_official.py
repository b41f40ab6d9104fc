import logging
from collections import Counter

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from PIL import Image

from dcal_hf.data import load_fgvc


def write_image(path, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (9, 7), 120 if mode == "L" else (120, 30, 60)).save(path)


def write_lines(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def files(part):
    """The file of each image."""
    records = part.cast_column("image", datasets.Image(decode=False))["image"]
    return [record["path"] for record in records]


def labelled(part, root):
    """Relative path and class name of each row."""
    names = part.features["label"].int2str(part["label"][:])
    return list(zip([path.removeprefix(f"{root}/") for path in files(part)], names))


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("dcal_hf")]


BIRDS = {
    "classes.txt": ("1 001.Black_footed_Albatross", "2 002.Laysan_Albatross", "3 010.Red_winged_Blackbird"),
    # IDs are neither sorted nor consecutive.
    "images.txt": (
        "7 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
        "2 001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg",
        "10 010.Red_winged_Blackbird/Red_Winged_Blackbird_0001_1.jpg",
        "4 002.Laysan_Albatross/Laysan Albatross_0002_1027.jpg",
        "5 010.Red_winged_Blackbird/Red_Winged_Blackbird_0002_2.jpg",
    ),
    "image_class_labels.txt": ("2 1", "4 2", "5 3", "7 1", "10 3"),
    "train_test_split.txt": ("2 0", "4 1", "5 0", "7 1", "10 1"),
}
GREY = "images/010.Red_winged_Blackbird/Red_Winged_Blackbird_0001_1.jpg"


def write_cub(root):
    for name, rows in BIRDS.items():
        write_lines(root / name, *rows)
    for row in BIRDS["images.txt"]:
        path = "images/" + row.split(" ", 1)[1]
        write_image(root / path, "L" if path == GREY else "RGB")
    return root


class TestCUB:
    @pytest.mark.parametrize("top", ["", "CUB_200_2011"])
    def test_rows_join_three_lists(self, top, tmp_path):
        root = write_cub(tmp_path / "12_c3" / top)
        dataset = load_fgvc("cub200", tmp_path / "12_c3", validation_fraction=0)
        assert list(dataset) == ["train", "test"]
        assert labelled(dataset["train"], root / "images") == [
            ("001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg", "001.Black_footed_Albatross"),
            ("010.Red_winged_Blackbird/Red_Winged_Blackbird_0001_1.jpg", "010.Red_winged_Blackbird"),
            ("002.Laysan_Albatross/Laysan Albatross_0002_1027.jpg", "002.Laysan_Albatross"),
        ]
        assert dataset["train"]["label"][:] == [0, 2, 1]
        assert dataset["test"]["label"][:] == [0, 2]

    def test_schema_and_a_grey_file(self, tmp_path):
        dataset = load_fgvc("cub200", str(write_cub(tmp_path)), validation_fraction=0)
        label = ClassLabel(names=["001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird"])
        for part in dataset.values():
            assert part.features == {"image": datasets.Image(mode="RGB"), "label": label}
        grey = files(dataset["train"]).index(str(tmp_path / GREY))
        with Image.open(tmp_path / GREY) as image:
            assert image.mode == "L"
        assert dataset["train"][grey]["image"].mode == "RGB"
        assert dataset["train"][grey]["image"].size == (9, 7)

    def test_images_are_not_opened_on_loading(self, tmp_path):
        (write_cub(tmp_path) / GREY).write_bytes(b"no image")
        assert len(load_fgvc("cub200", tmp_path, validation_fraction=0)["train"]) == 3

    def test_validation_is_taken_from_train(self, tmp_path):
        rows = [f"{number} {1 + number % 2}" for number in range(40)]
        write_lines(tmp_path / "classes.txt", "1 a", "2 b")
        write_lines(tmp_path / "images.txt", *(f"{number} {number}.jpg" for number in range(40)))
        write_lines(tmp_path / "image_class_labels.txt", *rows)
        write_lines(tmp_path / "train_test_split.txt", *(f"{number} {int(number < 20)}" for number in range(40)))
        for number in range(40):
            write_image(tmp_path / "images" / f"{number}.jpg")
        dataset = load_fgvc("cub200", tmp_path, validation_fraction=0.2)
        assert {split: len(part) for split, part in dataset.items()} == {"train": 16, "validation": 4, "test": 20}
        assert Counter(dataset["validation"]["label"][:]) == {0: 2, 1: 2}
        assert not {*files(dataset["train"]), *files(dataset["validation"])} & {*files(dataset["test"])}

    def test_one_warning_lists_the_differences(self, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            load_fgvc("cub200", write_cub(tmp_path), validation_fraction=0)
        assert warnings_of(caplog) == [
            f"{tmp_path} is not the published cub200: train has 3 classes and 3 images, officially 200 and 5,994; "
            "test has 2 classes and 2 images, officially 200 and 5,794"
        ]

    def test_the_published_size_causes_no_warning(self, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr("dcal_hf.data.fgvc.official_counts", lambda *_: {"train": (3, 3), "test": (2, 2)})
        with caplog.at_level(logging.WARNING):
            load_fgvc("cub200", write_cub(tmp_path), validation_fraction=0)
        assert warnings_of(caplog) == []

    def test_a_missing_class_is_reported(self, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr("dcal_hf.data.fgvc.official_counts", lambda *_: {"train": (4, 3), "test": (2, 2)})
        with caplog.at_level(logging.WARNING):
            load_fgvc("cub200", write_cub(tmp_path), validation_fraction=0)
        (message,) = warnings_of(caplog)
        assert message.endswith(": train has 3 classes and 3 images, officially 4 and 3")

    @pytest.mark.parametrize("name", BIRDS)
    def test_a_missing_list_is_named(self, name, tmp_path):
        (write_cub(tmp_path) / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"{tmp_path / name} does not exist; data_dir must be the official "
                                                    "folder CUB_200_2011, or the one above it, or its archive"):
            load_fgvc("cub200", tmp_path)

    def test_a_missing_image_is_named_with_its_list(self, tmp_path):
        (write_cub(tmp_path) / GREY).unlink()
        with pytest.raises(FileNotFoundError, match=f"{tmp_path / GREY}, which {tmp_path / 'images.txt'} lists, does "
                                                    r"not exist \(1 missing in total\)"):
            load_fgvc("cub200", tmp_path)

    @pytest.mark.parametrize("name, row", [
        ("images.txt", "11"), ("image_class_labels.txt", "11 owl"), ("train_test_split.txt", "11 2"),
        ("classes.txt", "owl"),
    ])
    def test_a_row_that_does_not_parse_is_named(self, name, row, tmp_path):
        write_cub(tmp_path)
        write_lines(tmp_path / name, BIRDS[name][0], "", row)
        with pytest.raises(ValueError, match=f"row 3 of {tmp_path / name}, '{row}', is not of the form '1 "):
            load_fgvc("cub200", tmp_path)

    @pytest.mark.parametrize("name", ["image_class_labels.txt", "train_test_split.txt"])
    def test_an_image_that_a_list_leaves_out_is_named(self, name, tmp_path):
        write_lines(write_cub(tmp_path) / name, *BIRDS[name][:-1])
        with pytest.raises(ValueError, match=f"image 10 of {tmp_path / 'images.txt'} has no row in {tmp_path / name}"):
            load_fgvc("cub200", tmp_path)

    def test_an_unknown_class_is_named(self, tmp_path):
        write_lines(write_cub(tmp_path) / "image_class_labels.txt", "2 1", "4 9", "5 3", "7 1", "10 3")
        with pytest.raises(ValueError, match="image 4 has the class 9 in .*/image_class_labels.txt, which .*/classes"):
            load_fgvc("cub200", tmp_path)

    def test_empty_lists_and_splits_are_named(self, tmp_path):
        write_lines(write_cub(tmp_path) / "train_test_split.txt", "2 1", "4 1", "5 1", "7 1", "10 1")
        with pytest.raises(ValueError, match="images.txt lists no images of test"):
            load_fgvc("cub200", tmp_path)
        assert len(load_fgvc("cub200", tmp_path, splits=("train",), validation_fraction=0)["train"]) == 5
        write_lines(tmp_path / "images.txt", "")
        with pytest.raises(ValueError, match="images.txt is empty"):
            load_fgvc("cub200", tmp_path)


LEVELS = {
    "variant": ("variants.txt", ["707-320", "A300B4", "Cessna 172", "F/A-18"]),
    "family": ("families.txt", ["A300", "Boeing 707", "Cessna 172", "F/A-18"]),
    "manufacturer": ("manufacturers.txt", ["Airbus", "Boeing", "Cessna", "McDonnell Douglas"]),
}
# Index of variant, family and manufacturer.
AIRCRAFT = {
    "train": {"1025794": (0, 1, 1), "0034309": (3, 3, 3), "1340192": (2, 2, 2)},
    "val": {"0056978": (1, 0, 0), "2017998": (3, 3, 3)},
    "test": {"1514522": (3, 3, 3)},
}


def write_aircraft(root):
    for level, (name, classes) in LEVELS.items():
        write_lines(root / name, *classes)
        place = list(LEVELS).index(level)
        for split, images in AIRCRAFT.items():
            rows = [f"{image} {classes[indices[place]]}" for image, indices in images.items()]
            write_lines(root / f"images_{level}_{split}.txt", *rows)
    for image in (image for images in AIRCRAFT.values() for image in images):
        write_image(root / "images" / f"{image}.jpg")
    return root


class TestAircraft:
    @pytest.mark.parametrize("top", ["", "data", "fgvc-aircraft-2013b/data"])
    def test_rows_and_the_official_splits(self, top, tmp_path):
        root = write_aircraft(tmp_path / top)
        dataset = load_fgvc("fgvc_aircraft", tmp_path)
        assert list(dataset) == ["train", "validation", "test"]
        assert labelled(dataset["train"], root) == [
            ("images/1025794.jpg", "707-320"), ("images/0034309.jpg", "F/A-18"), ("images/1340192.jpg", "Cessna 172"),
        ]
        assert labelled(dataset["validation"], root) == [
            ("images/0056978.jpg", "A300B4"), ("images/2017998.jpg", "F/A-18"),
        ]
        assert labelled(dataset["test"], root) == [("images/1514522.jpg", "F/A-18")]
        label = ClassLabel(names=["707-320", "A300B4", "Cessna 172", "F/A-18"])
        for part in dataset.values():
            assert part.features == {"image": datasets.Image(mode="RGB"), "label": label}
        assert dataset["test"][0]["image"].size == (9, 7)

    def test_without_validation_train_is_trainval(self, tmp_path):
        root = write_aircraft(tmp_path)
        dataset = load_fgvc("fgvc_aircraft", tmp_path, validation_fraction=0)
        assert list(dataset) == ["train", "test"]
        assert [path for path, _ in labelled(dataset["train"], root / "images")] == [
            "1025794.jpg", "0034309.jpg", "1340192.jpg", "0056978.jpg", "2017998.jpg",
        ]
        assert dataset["train"]["label"][:] == [0, 3, 2, 1, 3]

    def test_lists_that_an_editor_of_windows_saved(self, tmp_path):
        root = write_aircraft(tmp_path)
        for path in root.glob("*.txt"):
            path.write_text(path.read_text(), encoding="utf-8-sig", newline="\r\n")
        dataset = load_fgvc("fgvc_aircraft", root)
        assert dataset["train"].features["label"].names == LEVELS["variant"][1]
        assert labelled(dataset["test"], root) == [("images/1514522.jpg", "F/A-18")]

    @pytest.mark.parametrize("level, expected", [
        ("variant", ["707-320", "F/A-18", "Cessna 172"]),
        ("family", ["Boeing 707", "F/A-18", "Cessna 172"]),
        ("manufacturer", ["Boeing", "McDonnell Douglas", "Cessna"]),
    ])
    def test_levels(self, level, expected, tmp_path):
        dataset = load_fgvc("fgvc_aircraft", write_aircraft(tmp_path), config_name=level)
        assert [name for _, name in labelled(dataset["train"], tmp_path)] == expected
        assert dataset["train"].features["label"].names == LEVELS[level][1]

    @pytest.mark.parametrize("level, classes", [("variant", 100), ("family", 70), ("manufacturer", 30)])
    def test_the_warning_contains_the_published_counts(self, level, classes, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            load_fgvc("fgvc_aircraft", write_aircraft(tmp_path), config_name=level, validation_fraction=0)
        (message,) = warnings_of(caplog)
        assert f"train has 3 classes and 3 images, officially {classes} and 3,334" in message
        assert f"validation has 2 classes and 2 images, officially {classes} and 3,333" in message
        assert f"test has 1 classes and 1 images, officially {classes} and 3,333" in message

    @pytest.mark.parametrize("name", ["variants.txt", "images_variant_val.txt", "images_variant_test.txt"])
    def test_a_missing_list_is_named(self, name, tmp_path):
        (write_aircraft(tmp_path / "data") / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'data' / name} does not exist; .* fgvc-aircraft-20"):
            load_fgvc("fgvc_aircraft", tmp_path)

    def test_a_missing_image_is_named_with_its_list(self, tmp_path):
        path = write_aircraft(tmp_path) / "images" / "2017998.jpg"
        path.unlink()
        with pytest.raises(FileNotFoundError, match=f"{path}, which {tmp_path / 'images_variant_val.txt'} lists"):
            load_fgvc("fgvc_aircraft", tmp_path)

    @pytest.mark.parametrize("row", ["1514522", "151452 F/A-18", "1514522.jpg F/A-18"])
    def test_a_row_that_does_not_parse_is_named(self, row, tmp_path):
        path = write_aircraft(tmp_path) / "images_variant_test.txt"
        write_lines(path, "1514522 F/A-18", row)
        with pytest.raises(ValueError, match=f"row 2 of {path}, '{row}', is not of the form '1025794 707-320'"):
            load_fgvc("fgvc_aircraft", tmp_path)

    def test_an_unknown_class_is_named(self, tmp_path):
        path = write_aircraft(tmp_path) / "images_variant_test.txt"
        write_lines(path, "1514522 F/A-18 Hornet")
        with pytest.raises(ValueError, match=f"row '1514522 F/A-18 Hornet' of {path} has a class that .*variants.txt"):
            load_fgvc("fgvc_aircraft", tmp_path)


class TestArguments:
    def test_levels_are_checked(self, tmp_path):
        with pytest.raises(ValueError, match="no configuration 'model'; it has variant, family, manufacturer"):
            load_fgvc("fgvc_aircraft", tmp_path, config_name="model")
        with pytest.raises(ValueError, match="'cub200' has no configuration 'family'; only 'fgvc_aircraft' has some"):
            load_fgvc("cub200", tmp_path, config_name="family")

    def test_data_dir_is_one_existing_folder(self, tmp_path):
        with pytest.raises(ValueError, match="'cub200' is read from one official folder or archive"):
            load_fgvc("cub200", {"train": tmp_path})
        with pytest.raises(FileNotFoundError, match="nowhere does not exist; check data_dir"):
            load_fgvc("cub200", tmp_path / "nowhere")

    def test_splits(self, tmp_path):
        write_aircraft(tmp_path)
        assert list(load_fgvc("fgvc_aircraft", tmp_path, splits=("test", "train"))) == ["test", "train"]
        with pytest.raises(ValueError, match=f"{tmp_path} has no split 'validation'"):
            load_fgvc("fgvc_aircraft", tmp_path, splits=("train", "validation"), validation_fraction=0)


def hub_part(**labels):
    """A split of a data set on the Hub; each column maps to its class names and the labels of the rows."""
    features = {"image": datasets.Image()}
    features |= {column: ClassLabel(names=names) for column, (names, _) in labels.items()}
    columns = {column: rows for column, (_, rows) in labels.items()}
    columns["image"] = [Image.new("L", (4, 4))] * len(next(iter(columns.values())))
    return Dataset.from_dict(columns, features=Features(features))


class TestHub:
    @pytest.mark.parametrize("name, hub_id", [
        ("cub200", "bentrevett/caltech-ucsd-birds-200-2011"), ("stanford_cars", "tanganke/stanford_cars"),
    ])
    def test_without_data_dir_the_hub_is_used(self, name, hub_id, hub, caplog):
        classes = ["b", "a"]
        dataset = {split: hub_part(label=(classes, [0, 1, 1])) for split in ("train", "test")}
        calls = hub(DatasetDict(dataset))
        with caplog.at_level(logging.WARNING):
            loaded = load_fgvc(name, revision="v1", token="secret", cache_dir="cache", validation_fraction=0)
        assert calls == [((hub_id, None), {"revision": "v1", "token": "secret", "cache_dir": "cache"})]
        assert loaded["train"].features == {"image": datasets.Image(mode="RGB"), "label": ClassLabel(names=classes)}
        assert loaded["test"]["label"][:] == [0, 1, 1]
        assert warnings_of(caplog)[0].startswith(f"{hub_id} is not the published {name}: train has 2 classes")

    @pytest.mark.parametrize("level, expected", [
        (None, ["707-320", "F/A-18"]), ("family", ["Boeing 707", "F/A-18"]),
        ("manufacturer", ["Boeing", "McDonnell Douglas"]),
    ])
    def test_aircraft_in_the_official_order(self, level, expected, hub):
        def part(rows):
            columns = {"label": ["F/A-18", "Boeing 707"], "variation": ["F/A-18", "707-320"],
                       "manufacturer": ["McDonnell Douglas", "Boeing"]}
            return hub_part(**{column: (names, rows) for column, names in columns.items()})

        hub(DatasetDict({"train": part([1, 0, 1]), "val": part([0, 1]), "test": part([0])}))
        dataset = load_fgvc("fgvc_aircraft", config_name=level)
        assert {split: len(part) for split, part in dataset.items()} == {"train": 3, "validation": 2, "test": 1}
        assert dataset["train"].features["label"].names == expected
        assert dataset["train"]["label"][:] == [0, 1, 0]
        assert dataset["test"]["label"][:] == [1]
        joined = load_fgvc("fgvc_aircraft", config_name=level, validation_fraction=0)
        assert {split: part["label"][:] for split, part in joined.items()} == {"train": [0, 1, 0, 1, 0], "test": [1]}

    def test_offline_the_message_mentions_data_dir(self):
        with pytest.raises(FileNotFoundError, match="'cub200' is loaded from the Hub: 'bentrevett/caltech"):
            load_fgvc("cub200")
