import logging
from collections import Counter

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image

from dcal_hf.data import load_reid


@pytest.fixture
def root(tmp_path):
    """A folder whose name looks like a file name of some data sets."""
    return tmp_path / "0007_c3s2_run"


def write_all(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 12), (10, 200, 30)).save(root / name)


def rows(part):
    """Folder, file name, identity and camera (or None) of each row."""
    records = part.cast_column("image", datasets.Image(decode=False))["image"]
    paths = ["/".join(record["path"].split("/")[-2:]) for record in records]
    cameras = part["camera_id"] if "camera_id" in part.column_names else [None] * len(part)
    return list(zip(paths, part["identity"], cameras))


def names(part):
    return part.features["label"].int2str(part["label"][:])


def write_folder(root, counts):
    for folder, count in counts.items():
        write_all(root, [f"{folder}/{number}.png" for number in range(count)])
    return root


class TestAllIdentities:
    """All identities are used for evaluation only, or for training only."""

    def test_all_identities_are_evaluated(self, root, caplog):
        write_folder(root, {f"turtle {number}": 5 for number in range(14)})
        with caplog.at_level(logging.INFO):
            dataset = load_reid(root, splits=("query", "gallery"), test_fraction=1)
        assert len(set(dataset["query"]["identity"])) == 14 and len(dataset["query"]) == 14
        assert len(dataset["query"]) + len(dataset["gallery"]) == 70
        told = f"{root}: 14 of 14 identities are held out (14 queries, 56 gallery images), 0 are in train"
        assert told in caplog.text
        with pytest.raises(ValueError, match="test_fraction=1 leaves no identity of .* to train on"):
            load_reid(root, test_fraction=1)

    def test_all_are_train(self, root):
        write_folder(root, {f"turtle {number}": 5 for number in range(14)})
        dataset = load_reid(root, splits=("train",), test_fraction=0)
        assert len(dataset["train"]) == 70 and dataset["train"].features["label"].num_classes == 14
        with pytest.raises(ValueError, match="test_fraction=0 leaves no identity of .* to test on"):
            load_reid(root, test_fraction=0)

    def test_the_number_of_held_out_identities_is_logged(self, root, caplog):
        write_folder(root, {f"turtle {number}": 5 for number in range(14)})
        with caplog.at_level(logging.INFO):
            load_reid(root, splits=("query", "gallery"))
        assert "4 of 14 identities are held out (4 queries, 16 gallery images), 10 are in train" in caplog.text


class TestFolder:
    def test_three_splits(self, root):
        write_folder(root, {"train/12": 2, "train/3": 1, "query/007": 1, "gallery/007": 2, "gallery/0": 1})
        dataset = load_reid(root)
        assert names(dataset["train"]) == ["12", "12", "3"]
        assert dataset["train"].features["label"].names == ["3", "12"]
        assert rows(dataset["query"]) == [("007/0.png", 7, None)]
        assert rows(dataset["gallery"]) == [("0/0.png", 0, None), ("007/0.png", 7, None), ("007/1.png", 7, None)]
        assert dataset["query"].column_names == dataset["gallery"].column_names == ["image", "identity"]

    def test_identities_by_name(self, root):
        write_folder(root, {"train/rex": 1, "train/ada": 1, "query/max": 1, "gallery/max": 2, "gallery/7": 1})
        dataset = load_reid(str(root))
        feature = ClassLabel(names=["7", "ada", "max", "rex"])
        assert all(part.features["identity"] == feature for part in dataset.values())
        assert dataset["train"].features["label"].names == ["ada", "rex"]
        assert names(dataset["train"]) == ["ada", "rex"]
        assert dataset["query"]["identity"][:] == [2]
        assert feature.int2str(dataset["gallery"]["identity"][:]) == ["7", "max", "max"]

    def test_names_of_the_same_integer_are_distinct(self, root):
        write_folder(root, {"train/1": 1, "train/01": 1, "query/2": 1, "gallery/2": 1})
        assert load_reid(root)["train"].features["label"].names == ["01", "1"]

    def test_a_split_by_identity(self, root):
        write_folder(root, {f"{identity:02}": 10 for identity in range(20)})
        dataset = load_reid(root, test_fraction=0.25, query_fraction=0.3)
        counts = {split: Counter(part["identity"][:]) for split, part in dataset.items()}
        assert len(counts["train"]) == 15
        assert set(counts["train"].values()) == {10}
        assert set(counts["query"]) == set(counts["gallery"]) == set(range(20)) - set(counts["train"])
        assert set(counts["query"].values()) == {3}
        assert set(counts["gallery"].values()) == {7}
        paths = [row[0] for part in dataset.values() for row in rows(part)]
        assert len(set(paths)) == len(paths) == 200

    def test_the_seed_decides_the_split(self, root):
        write_folder(root, {str(identity): 3 for identity in range(12)})
        first, again, other = (rows(load_reid(root, seed=seed)["query"]) for seed in (1, 1, 2))
        assert first == again
        assert first != other

    def test_single_images_are_never_queries(self, root):
        write_folder(root, {**{str(i): 2 for i in range(6)}, **{str(i): 1 for i in range(6, 30)}})
        dataset = load_reid(root, test_fraction=0.5)
        assert len(dataset["query"]) == 3
        assert set(dataset["query"]["identity"]) <= set(range(6)) & set(dataset["gallery"]["identity"])
        assert len(set(dataset["gallery"]["identity"])) == 15

    def test_queries_are_chosen_from_test(self, root):
        write_folder(root, {"train/a": 4, "train/b": 4, "test/c": 5, "test/d": 1})
        dataset = load_reid(root)
        assert Counter(names(dataset["train"])) == {"a": 4, "b": 4}
        assert [row[1] for row in rows(dataset["query"])] == [2]
        assert Counter(row[1] for row in rows(dataset["gallery"])) == {2: 4, 3: 1}

    def test_test_is_the_gallery_if_there_is_query(self, root):
        write_folder(root, {"train/1": 1, "query/2": 1, "test/2": 2})
        assert len(load_reid(root)["gallery"]) == 2

    def test_junk_is_dropped(self, root):
        write_folder(root, {"train/1": 1, "query/2": 1, "gallery/2": 2, "gallery/-1": 3})
        assert load_reid(root)["gallery"]["identity"][:] == [2, 2]

    def test_other_files_are_skipped_with_one_warning(self, root, caplog):
        write_folder(root, {"1": 2, "2": 2})
        (root / "1" / "notes.txt").write_text("x")
        (root / "2" / ".DS_Store").write_text("x")
        with caplog.at_level(logging.WARNING):
            load_reid(root)
        (message,) = [record.getMessage() for record in caplog.records if record.name == "dcal_hf.data.image_files"]
        assert ": 1 entry, the first is" in message
        assert message.endswith(str(root / "1" / "notes.txt"))

    def test_imagefolder_with_data_dir(self, root):
        write_folder(root / "sub", {"train/1": 1, "query/2": 1, "gallery/2": 2})
        assert rows(load_reid("imagefolder", root / "sub")["query"]) == [("2/0.png", 2, None)]
        assert rows(load_reid(root, "sub")["query"]) == [("2/0.png", 2, None)]


class TestFolderErrors:
    def test_neither_folder_nor_table_nor_name(self, root):
        with pytest.raises(FileNotFoundError, match="_run' is none of drawn, market1501, dukemtmc, veri776, msmt17, "
                                                    "and neither an existing folder nor a table"):
            load_reid(root)
        with pytest.raises(ValueError, match="'imagefolder' needs data_dir"):
            load_reid("imagefolder")

    @pytest.mark.parametrize("missing", ["train", "query", "gallery"])
    def test_a_missing_split_is_named(self, missing, root):
        folders = {"train/1": 1, "query/2": 1, "gallery/2": 2}
        write_folder(root, {name: count for name, count in folders.items() if not name.startswith(missing)})
        with pytest.raises(ValueError, match=f"{root} has no {missing}; it has .*leave it out of splits"):
            load_reid(root)

    def test_query_and_gallery_without_train(self, root):
        write_folder(root, {"query/2": 1, "gallery/2": 2})
        assert list(load_reid(root, splits=("query", "gallery"))) == ["query", "gallery"]

    def test_no_identity_folders(self, root):
        write_all(root, ["1.png"])
        with pytest.raises(ValueError, match=f"{root} contains no identity folders; put the images of each identity"):
            load_reid(root)

    def test_an_empty_identity_folder_is_named(self, root):
        (write_folder(root, {"train/1": 1}) / "train" / "2").mkdir()
        with pytest.raises(ValueError, match=f"identity folder {root / 'train' / '2'} contains no images"):
            load_reid(root)

    def test_gallery_and_test(self, root):
        with pytest.raises(ValueError, match="has both gallery and test"):
            load_reid(write_folder(root, {"train/1": 1, "query/2": 1, "gallery/2": 1, "test/2": 1}))

    def test_too_few_identities_to_split(self, root):
        sentence = f"{root} cannot be split by identity: it has 3 identities, 1 of them with two images"
        with pytest.raises(ValueError, match=sentence):
            load_reid(write_folder(root, {"1": 5, "2": 1, "3": 1}))

    def test_only_the_query_itself_in_the_gallery(self, root):
        write_all(root, ["a.png"])
        table = root / "all.csv"
        table.write_text("image,identity,split\na.png,7,train\na.png,7,query\na.png,7,gallery\n")
        with pytest.raises(ValueError, match="only gallery image of each query's identity is the query itself"):
            load_reid(table)

    def test_no_queries_in_test(self, root):
        with pytest.raises(ValueError, match=f"{root} has no possible query: none of the held-out identities"):
            load_reid(write_folder(root, {"train/1": 5, "test/2": 1, "test/3": 1}))

    def test_arguments(self, root):
        for value in (-0.1, 1.5):
            with pytest.raises(ValueError, match=f"test_fraction must be from 0 to 1, not {value}"):
                load_reid(root, test_fraction=value)
        with pytest.raises(ValueError, match="query_fraction must be above 0 and below 1, not 1"):
            load_reid(root, query_fraction=1)
        with pytest.raises(ValueError, match="there is no split 'test'; splits can be train, query, gallery"):
            load_reid(root, splits=("test",))


TABLE = [
    ("a.png", "12", "north", "train"),
    ("b.png", "12", "south", "train"),
    ("c.png", "3", "north", "train"),
    ("d.png", "5", "east", "query"),
    ("e.png", "5", "north", "gallery"),
    ("f.png", "-1", "north", "gallery"),
]


@pytest.fixture(params=["csv", "parquet"])
def write_table(request, root):
    def write_rows(rows, columns=("image", "identity", "camera", "split"), images=True):
        if images:
            write_all(root, [row[0] for row in rows])
        path = root / f"rows.{request.param}"
        path.parent.mkdir(exist_ok=True)
        if request.param == "csv":
            path.write_text("\n".join(",".join(map(str, row)) for row in [columns, *rows]))
        else:
            pyarrow.parquet.write_table(pyarrow.table(dict(zip(columns, map(list, zip(*rows))))), path)
        return path

    return write_rows


class TestTable:
    def test_all_columns(self, write_table):
        dataset = load_reid(write_table(TABLE))
        cameras = ClassLabel(names=["east", "north", "south"])
        assert all(part.features["camera_id"] == cameras for part in dataset.values())
        assert all(part.features["identity"] == Value("int64") for part in dataset.values())
        assert [row[1:] for row in rows(dataset["train"])] == [(12, 1), (12, 2), (3, 1)]
        assert names(dataset["train"]) == ["12", "12", "3"]
        assert rows(dataset["query"]) == [("0007_c3s2_run/d.png", 5, 0)]
        assert [row[1:] for row in rows(dataset["gallery"])] == [(5, 1)]
        assert dataset["train"][0]["image"].size == (6, 12)

    def test_integers(self, write_table):
        table = [(image, int(identity), number % 2, split) for number, (image, identity, _, split) in enumerate(TABLE)]
        dataset = load_reid(str(write_table(table, ("image", "identity", "camera_id", "split"))))
        assert [row[1:] for row in rows(dataset["train"])] == [(12, 0), (12, 1), (3, 0)]
        assert dataset["gallery"].features["camera_id"] == Value("int64")

    def test_without_cameras(self, write_table):
        path = write_table([(image, identity, split) for image, identity, _, split in TABLE],
                           ("image", "identity", "split"))
        dataset = load_reid(path)
        assert dataset["query"].column_names == ["image", "identity"]
        assert dataset["gallery"]["identity"][:] == [5]

    def test_without_splits_queries_have_a_match_in_another_camera(self, write_table):
        table = [(f"{number}.png", number % 10, number // 10 % 3) for number in range(60)]
        table += [(f"{number}.png", number, 0) for number in range(60, 70) for _ in range(4)]
        dataset = load_reid(write_table(table, ("image", "identity", "camera")), test_fraction=0.5)
        gallery = {(identity, camera) for _, identity, camera in rows(dataset["gallery"])}
        assert sum(map(len, dataset.values())) == 100
        assert set(dataset["train"]["identity"]).isdisjoint(dataset["gallery"]["identity"])
        assert len(set(dataset["query"]["identity"])) == 5
        for _, identity, camera in rows(dataset["query"]):
            assert any((identity, other) in gallery for other in range(3) if other != camera)

    def test_images_relative_to_data_dir(self, write_table, tmp_path):
        path = write_table(TABLE, images=False)
        write_all(tmp_path / "photos", [row[0] for row in TABLE])
        dataset = load_reid(path, tmp_path / "photos")
        assert rows(dataset["query"]) == [("photos/d.png", 5, 0)]

    def test_a_missing_image_is_named_with_its_row(self, write_table, root):
        path = write_table(TABLE)
        (root / "c.png").unlink()
        with pytest.raises(FileNotFoundError, match=f"{root / 'c.png'}, in row 3 of {path}, column 'image', does not"):
            load_reid(path)

    def test_a_missing_column_is_named(self, write_table):
        with pytest.raises(ValueError, match="rows.* has no column 'image' and no column 'identity'; it has file"):
            load_reid(write_table([("a.png", 1)], ("file", "who")))

    def test_a_missing_value_is_named(self, write_table):
        with pytest.raises(ValueError, match=r"has no identity in row 2 \(1 such row in total\), column 'identity'"):
            load_reid(write_table([("a.png", "x"), ("b.png", "")], ("image", "identity")))

    @pytest.mark.parametrize("text", ["nan", " NaN", "None", "<NA>"])
    def test_a_missing_value_that_was_written_as_text_is_named(self, write_table, text):
        """It would be one individual with many images."""
        with pytest.raises(ValueError, match=r"has no identity in row 1 \(2 such rows in total\)"):
            load_reid(write_table([("a.png", text), ("b.png", text), ("c.png", "Nan")], ("image", "identity")))

    def test_an_unknown_split_is_named(self, write_table):
        sentence = "has the split 'dev' in row 2, column 'split': splits are train, query, gallery, test"
        with pytest.raises(ValueError, match=sentence):
            load_reid(write_table([("a.png", "1", "train"), ("b.png", "1", "dev")], ("image", "identity", "split")))

    def test_an_empty_csv(self, root):
        root.mkdir()
        (root / "rows.csv").write_text("image,identity\n")
        with pytest.raises(ValueError, match="rows.csv has no rows"):
            load_reid(root / "rows.csv")

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (b"", "is empty; its first line must name the columns image and identity"),
            (b"\n\n", "is empty; its first line"),
            (b"   \na.png,1", "is empty; its first line"),
            (b" , \na.png,1", "is empty; its first line"),
            (b"image,identity\n\xff\xfe,1\n", r"is no CSV table in UTF-8 after line 0 \('utf-8' codec can't"),
            (b"image,identity\na.png," + b"1" * 140_000, r"after line 1 \(field larger than field limit \(131072\)\)"),
            (b'"im\nage",identity\na.png,1', "has no column 'image'; it has im age, identity"),
            (b'image,identity\n"a\nb.png",1', "a b.png, in row 1 of .* does not exist"),
        ],
    )
    def test_a_damaged_csv_raises_a_clear_error(self, root, content, sentence):
        root.mkdir()
        (root / "rows.csv").write_bytes(content)
        with pytest.raises((ValueError, FileNotFoundError), match=f"rows.csv.* {sentence}|{sentence}") as error:
            load_reid(root / "rows.csv")
        assert "rows.csv" in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("start", "stop", "inserted"), [(0, None, b""), (-4, None, b""), (-9, -8, b"\xff"), (4, 60, b"x" * 56)]
    )
    def test_a_damaged_parquet_file_is_named(self, root, start, stop, inserted):
        root.mkdir()
        Dataset.from_dict({"image": ["a.png"], "identity": [1]}).to_parquet(root / "rows.parquet")
        content = bytearray((root / "rows.parquet").read_bytes())
        content[start:stop] = inserted
        (root / "rows.parquet").write_bytes(content)
        with pytest.raises(ValueError, match="rows.parquet cannot be read as a Parquet table .*; write") as error:
            load_reid(root / "rows.parquet")
        assert "\n" not in str(error.value)

    def test_a_csv_from_a_spreadsheet(self, root):
        write_all(root, ["ä, b.png", "c.png", "d.png"])
        text = 'image,identity,split\r\n"ä, b.png",x,train\r\nc.png,y,query\r\nd.png,y,gallery\r\n'
        (root / "rows.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert rows(load_reid(root / "rows.csv")["train"]) == [("0007_c3s2_run/ä, b.png", 0, None)]

    def test_a_parquet_file_of_images(self, root):
        images = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(6)]
        identity = ClassLabel(names=["rex", "max"])
        features = Features(image=datasets.Image(), identity=identity, split=Value("string"))
        parts = ["train", "train", "query", "gallery", "gallery", "train"]
        columns = {"image": images, "identity": [0, 0, 1, 1, 1, 0], "split": parts}
        root.mkdir()
        Dataset.from_dict(columns, features=features).to_parquet(root / "rows.parquet")
        dataset = load_reid(root / "rows.parquet")
        assert [image.getpixel((0, 0))[0] for image in dataset["train"]["image"]] == [0, 1, 5]
        assert dataset["train"].features["label"].names == ["rex"]
        assert dataset["query"].features["identity"].int2str(dataset["query"]["identity"][:]) == ["max"]
        assert np.asarray(dataset["gallery"][1]["image"])[0, 0].tolist() == [4, 0, 0]
        assert dataset["gallery"].column_names == ["image", "identity"]


def test_missing_numbers_are_not_identities(tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path in paths:
        Image.new("RGB", (4, 4)).save(path)
    Dataset.from_dict({"image": paths, "identity": [1.0, float("nan"), float("nan")]}).to_parquet(
        tmp_path / "birds.parquet"
    )
    with pytest.raises(ValueError, match=r"has no identity in row 2 \(2 such rows in total\)"):
        load_reid(tmp_path / "birds.parquet")
