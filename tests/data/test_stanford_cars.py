import logging

import datasets
import numpy as np
import pytest
from datasets import ClassLabel
from PIL import Image
from scipy.io import savemat

from dcal_hf.data import load_fgvc


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (120, 30, 60)).save(path)


def labelled(part, root):
    """Relative path and class name of each row."""
    records = part.cast_column("image", datasets.Image(decode=False))["image"]
    names = part.features["label"].int2str(part["label"][:])
    return list(zip([record["path"].removeprefix(f"{root}/") for record in records], names))


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("dcal_hf")]


CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012")


def structs(**columns):
    """A (1, N) struct array, as MATLAB writes it."""
    rows = list(zip(*columns.values()))
    return np.array([rows], dtype=[(name, object) for name in columns])


def write_mat(path, **variables):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def write_cars(root, test_labels="cars_test_annos_withlabels.mat", test_classes=(2, 3)):
    write_mat(root / "devkit" / "cars_meta.mat", class_names=np.array([CARS], dtype=object))
    train = structs(bbox_x1=[1, 2, 3], **{"class": [3, 1, 1]}, fname=["00001.jpg", "00002.jpg", "00003.jpg"])
    test = structs(bbox_x1=[5, 6], **{"class": test_classes}, fname=["00001.jpg", "00002.jpg"])
    write_mat(root / "devkit" / "cars_train_annos.mat", annotations=train)
    write_mat(root / test_labels, annotations=test)
    for number in (1, 2, 3):
        write_image(root / "cars_train" / f"{number:05}.jpg")
    for number in (1, 2):
        write_image(root / "cars_test" / f"{number:05}.jpg")
    return root


def write_cars_at_once(root):
    paths = [f"car_ims/{number:06}.jpg" for number in (1, 2, 3, 4)]
    annotations = structs(
        relative_im_path=paths, bbox_x1=[7, 8, 9, 10], **{"class": [1, 3, 2, 1]}, test=[0, 1, 0, 1]
    )
    write_mat(root / "cars_annos.mat", annotations=annotations, class_names=np.array([CARS], dtype=object))
    for path in paths:
        write_image(root / path)
    return root


class TestCars:
    @pytest.mark.parametrize("top", ["", "stanford_cars"])
    @pytest.mark.parametrize("labels", ["cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"])
    def test_rows_of_the_layout_in_two_folders(self, top, labels, tmp_path):
        root = write_cars(tmp_path / top, labels)
        dataset = load_fgvc("stanford_cars", tmp_path, validation_fraction=0)
        assert list(dataset) == ["train", "test"]
        assert labelled(dataset["train"], root) == [
            ("cars_train/00001.jpg", "Ram C/V Cargo Van Minivan 2012"),
            ("cars_train/00002.jpg", "AM General Hummer SUV 2000"),
            ("cars_train/00003.jpg", "AM General Hummer SUV 2000"),
        ]
        assert labelled(dataset["test"], root) == [
            ("cars_test/00001.jpg", "Acura RL Sedan 2012"),
            ("cars_test/00002.jpg", "Ram C/V Cargo Van Minivan 2012"),
        ]
        for part in dataset.values():
            assert part.features == {"image": datasets.Image(mode="RGB"), "label": ClassLabel(names=list(CARS))}
        assert dataset["train"][0]["image"].size == (9, 7)

    @pytest.mark.parametrize("top", ["", "stanford_cars"])
    def test_rows_of_the_layout_in_one_folder(self, top, tmp_path):
        root = write_cars_at_once(tmp_path / top)
        dataset = load_fgvc("stanford_cars", tmp_path, validation_fraction=0)
        assert labelled(dataset["train"], root) == [
            ("car_ims/000001.jpg", "AM General Hummer SUV 2000"), ("car_ims/000003.jpg", "Acura RL Sedan 2012"),
        ]
        assert labelled(dataset["test"], root) == [
            ("car_ims/000002.jpg", "Ram C/V Cargo Van Minivan 2012"),
            ("car_ims/000004.jpg", "AM General Hummer SUV 2000"),
        ]
        assert dataset["test"].features["label"].names == list(CARS)

    def test_a_list_of_a_single_image(self, tmp_path):
        write_cars(tmp_path)
        one = structs(**{"class": [2]}, fname=["00002.jpg"])
        write_mat(tmp_path / "cars_test_annos_withlabels.mat", annotations=one)
        dataset = load_fgvc("stanford_cars", tmp_path, validation_fraction=0)
        assert labelled(dataset["test"], tmp_path) == [("cars_test/00002.jpg", "Acura RL Sedan 2012")]

    def test_test_is_needed_only_on_request(self, tmp_path):
        (write_cars(tmp_path) / "cars_test_annos_withlabels.mat").unlink()
        dataset = load_fgvc("stanford_cars", tmp_path, splits=("train",), validation_fraction=0)
        assert {split: len(part) for split, part in dataset.items()} == {"train": 3}
        with pytest.raises(FileNotFoundError, match="cars_test_annos_withlabels.mat does not exist"):
            load_fgvc("stanford_cars", tmp_path)

    def test_the_warning_contains_the_published_counts(self, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            load_fgvc("stanford_cars", write_cars(tmp_path), validation_fraction=0)
        (message,) = warnings_of(caplog)
        assert "train has 2 classes and 3 images, officially 196 and 8,144" in message
        assert "test has 2 classes and 2 images, officially 196 and 8,041" in message

    @pytest.mark.parametrize("name", ["devkit/cars_meta.mat", "devkit/cars_train_annos.mat"])
    def test_a_missing_file_is_named(self, name, tmp_path):
        (write_cars(tmp_path) / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"{tmp_path / name} does not exist"):
            load_fgvc("stanford_cars", tmp_path)

    def test_the_file_of_the_older_layout_is_named(self, tmp_path):
        (write_cars_at_once(tmp_path) / "cars_annos.mat").unlink()
        with pytest.raises(FileNotFoundError, match="cars_annos.mat does not exist"):
            load_fgvc("stanford_cars", tmp_path)

    @pytest.mark.parametrize("write, image, source", [
        (write_cars, "cars_test/00002.jpg", "cars_test_annos_withlabels.mat"),
        (write_cars_at_once, "car_ims/000003.jpg", "cars_annos.mat"),
    ])
    def test_a_missing_image_is_named_with_its_list(self, write, image, source, tmp_path):
        (write(tmp_path) / image).unlink()
        with pytest.raises(FileNotFoundError, match=f"{tmp_path / image}, which {tmp_path / source} lists, does not"):
            load_fgvc("stanford_cars", tmp_path)

    def test_test_annotations_without_classes_are_rejected(self, tmp_path):
        write_mat(write_cars(tmp_path) / "cars_test_annos_withlabels.mat",
                  annotations=structs(bbox_x1=[1, 2], fname=["00001.jpg", "00002.jpg"]))
        with pytest.raises(ValueError, match="withlabels.mat have no field 'class'; .* the one with labels"):
            load_fgvc("stanford_cars", tmp_path)

    @pytest.mark.parametrize("wrong", [0, 4])
    def test_a_class_out_of_range_is_named(self, wrong, tmp_path):
        write_cars(tmp_path, test_classes=(2, wrong))
        with pytest.raises(ValueError, match=f"entry 2 of .*/cars_test.* has the class {wrong}, but classes are 1 to"):
            load_fgvc("stanford_cars", tmp_path)

    def test_another_file_is_rejected(self, tmp_path):
        write_mat(write_cars(tmp_path) / "devkit" / "cars_meta.mat", something=1)
        with pytest.raises(ValueError, match="cars_meta.mat has no variable 'class_names'"):
            load_fgvc("stanford_cars", tmp_path)

    @pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 20, b"\0" * 200])
    def test_a_damaged_file_is_named(self, content, tmp_path):
        path = write_cars(tmp_path) / "devkit" / "cars_train_annos.mat"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} cannot be read as a .mat file"):
            load_fgvc("stanford_cars", tmp_path)

    def test_a_truncated_file_is_named(self, tmp_path):
        path = write_cars(tmp_path) / "devkit" / "cars_train_annos.mat"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=f"{path} cannot be read as a .mat file"):
            load_fgvc("stanford_cars", tmp_path)


def test_a_list_that_takes_too_much_memory_is_rejected(tmp_path):
    root = write_cars(tmp_path)
    path = root / "devkit" / "cars_train_annos.mat"
    savemat(path, {"annotations": np.zeros((1, 14_000_000))}, do_compression=True)
    assert path.stat().st_size < 200_000
    with pytest.raises(ValueError, match="take more than 104,857,600 bytes; if you trust it, save it uncompressed"):
        load_fgvc("stanford_cars", root)


def test_a_compressed_list_is_read(tmp_path):
    root = write_cars(tmp_path)
    train = structs(**{"class": [3, 1, 1]}, fname=["00001.jpg", "00002.jpg", "00003.jpg"])
    savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": train}, do_compression=True)
    assert len(load_fgvc("stanford_cars", root, validation_fraction=0)["train"]) == 3
