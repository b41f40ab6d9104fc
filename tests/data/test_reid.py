import dataclasses
import logging

import datasets
import pytest
from datasets import ClassLabel, Value
from PIL import Image

from dcal_hf.data import load_reid
from dcal_hf.data.reid_layouts import FOLDER_LAYOUTS


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 12), (10, 200, 30)).save(path)


def write_all(root, names):
    for name in names:
        write(root / name)
    return root


def rows(part):
    """Folder, file name, identity and camera of each row."""
    records = part.cast_column("image", datasets.Image(decode=False))["image"]
    paths = ["/".join(record["path"].split("/")[-2:]) for record in records]
    return list(zip(paths, part["identity"], part["camera_id"]))


def names(part):
    return part.features["label"].int2str(part["label"][:])


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("dcal_hf")]


MARKET = (
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0010_c6s4_000776_01.jpg",
    "bounding_box_train/0002_c3s1_000551_01.jpg",
    "query/0001_c1s1_001051_00.jpg",
    "query/0003_c3s1_000001_00.jpg",
    "bounding_box_test/0003_c1s6_015971_00.jpg",
    "bounding_box_test/0001_c2s1_001976_01.jpg",
    "bounding_box_test/0000_c1s1_000151_01.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
)
VERI = (
    "image_train/0001_c001_00016450_0.jpg",
    "image_train/0004_c020_00085030_0.jpg",
    "image_query/0002_c002_00030600_0.jpg",
    "image_test/0002_c012_00030605_1.jpg",
    "image_test/0005_c008_00023450_0.jpg",
)
MSMT17 = {
    "train": ("0000/0000_000_01_0303morning_0015_0.jpg 0", "0001/0001_003_15_0303noon_0090_1.jpg 1"),
    "val": ("0000/0000_001_14_0303morning_0026_0.jpg 0", "0001/0001_000_02_0303noon_0032_0.jpg 1"),
    "query": ("0000/0000_004_07_0303morning_0008_0.jpg 0",),
    "gallery": ("0000/0000_009_08_0303morning_0033_1.jpg 0", "0003/0003_002_07_0303noon_0001_0.jpg 3"),
}


@pytest.fixture
def root(tmp_path):
    """A folder whose name looks like a file name of some data sets."""
    return tmp_path / "0007_c3s2_run"


def write_market(root):
    write_all(root, MARKET)
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder / "Thumbs.db").write_bytes(b"x")
    return root


def write_msmt17(root, version=1):
    train, test = {1: ("train", "test"), 2: ("mask_train_v2", "mask_test_v2")}[version]
    for split, lines in MSMT17.items():
        folder = train if split in ("train", "val") else test
        write_all(root / folder, [line.split()[0] for line in lines])
        (root / f"list_{split}.txt").write_text("\n".join(lines) + "\n")
    return root


class TestMarket:
    def test_rows(self, root):
        dataset = load_reid("market1501", write_market(root))
        assert rows(dataset["train"]) == [
            ("bounding_box_train/0002_c1s1_000451_03.jpg", 2, 1),
            ("bounding_box_train/0002_c3s1_000551_01.jpg", 2, 3),
            ("bounding_box_train/0010_c6s4_000776_01.jpg", 10, 6),
        ]
        assert rows(dataset["query"]) == [
            ("query/0001_c1s1_001051_00.jpg", 1, 1),
            ("query/0003_c3s1_000001_00.jpg", 3, 3),
        ]
        assert [(identity, camera) for _, identity, camera in rows(dataset["gallery"])] == [(0, 1), (1, 2), (3, 1)]

    def test_features(self, root):
        dataset = load_reid("market1501", write_market(root))
        common = {"image": datasets.Image(mode="RGB"), "identity": Value("int64"), "camera_id": Value("int64")}
        assert list(dataset) == ["train", "query", "gallery"]
        assert dataset["train"].features == {**common, "label": ClassLabel(names=["2", "10"])}
        assert dataset["query"].features == dataset["gallery"].features == common
        assert dataset["train"]["label"][:] == [0, 0, 1]
        assert dataset["query"][0]["image"].size == (6, 12)

    @pytest.mark.parametrize("folder", ["data/archive", "data/Market-1501-v15.09.15"])
    def test_folders_around_the_official_one_are_skipped(self, folder, root):
        write_market(root / folder / "Market-1501-v15.09.15")
        (root / "__MACOSX").mkdir()
        assert len(load_reid("market1501", root)["query"]) == len(load_reid("market1501", root / folder)["query"]) == 2

    def test_with_the_official_top_folder(self, root):
        write_market(root / "Market-1501-v15.09.15")
        assert len(load_reid("market1501", str(root))["train"]) == 3

    def test_one_warning_lists_the_differences(self, root, caplog):
        with caplog.at_level(logging.WARNING):
            load_reid("market1501", write_market(root))
        (message,) = warnings_of(caplog)
        assert message.startswith(f"{root} is not the published market1501: train has 2 identities and 3 images, ")
        assert "officially 751 and 12,936" in message
        assert "query has 2 identities and 2 images, officially 750 and 3,368" in message
        assert "gallery has 3 identities and 3 images, officially 751 and 15,913" in message

    def test_the_published_size_causes_no_warning(self, root, caplog, monkeypatch):
        counts = {"train": (2, 3), "query": (2, 2), "gallery": (3, 3)}
        monkeypatch.setattr("dcal_hf.data.reid_layouts.FOLDER_LAYOUTS", {
            "market1501": dataclasses.replace(FOLDER_LAYOUTS["market1501"], counts=counts)
        })
        with caplog.at_level(logging.WARNING):
            load_reid("market1501", write_market(root))
        assert warnings_of(caplog) == []

    @pytest.mark.parametrize("folder", ["bounding_box_train", "query", "bounding_box_test"])
    def test_a_missing_folder_is_named(self, folder, root):
        write_all(root, [name for name in MARKET if not name.startswith(folder)])
        with pytest.raises(FileNotFoundError, match=f"{root / folder} does not exist; data_dir must be the official "
                                                    "folder Market-1501-v15.09.15, or the one above it"):
            load_reid("market1501", root)

    def test_other_splits_need_not_exist(self, root):
        write_all(root, [name for name in MARKET if not name.startswith("bounding_box_train")])
        dataset = load_reid("market1501", root, splits=("query", "gallery"))
        assert {split: len(part) for split, part in dataset.items()} == {"query": 2, "gallery": 3}

    def test_an_empty_folder_is_named(self, root):
        write_all(root, [name for name in MARKET if not name.startswith("query")])
        (root / "query").mkdir()
        with pytest.raises(ValueError, match=f"{root / 'query'} contains no images"):
            load_reid("market1501", root)

    def test_a_file_name_that_does_not_parse_is_named(self, root):
        write(write_market(root) / "query" / "photo.jpg")
        with pytest.raises(ValueError, match=f"'photo.jpg' in {root / 'query'} is not of the form of "
                                             "'0001_c1s1_001051_00.jpg'"):
            load_reid("market1501", root)

    def test_no_data_dir(self, root):
        with pytest.raises(ValueError, match="'market1501' needs data_dir"):
            load_reid("market1501")
        with pytest.raises(FileNotFoundError, match="0007_c3s2_run does not exist; check data_dir"):
            load_reid("market1501", root)

    def test_another_data_set_with_the_same_folders_is_rejected(self, root):
        with pytest.raises(ValueError, match="is not of the form of '0001_c2_f0046182.jpg'.*requested data set"):
            load_reid("dukemtmc", write_market(root))


class TestDuke:
    @pytest.mark.parametrize("top", ["", "DukeMTMC-reID"])
    def test_rows(self, top, root):
        write_all(root / top, [
            "bounding_box_train/0001_c2_f0046182.jpg",
            "query/0005_c2_f0046985.jpg",
            "bounding_box_test/0005_c8_f0051341.jpg",
            "bounding_box_test/0002_c1_f0044158.jpg",
        ])
        dataset = load_reid("dukemtmc", root)
        assert rows(dataset["train"]) == [("bounding_box_train/0001_c2_f0046182.jpg", 1, 2)]
        assert rows(dataset["query"]) == [("query/0005_c2_f0046985.jpg", 5, 2)]
        assert [(identity, camera) for _, identity, camera in rows(dataset["gallery"])] == [(2, 1), (5, 8)]


class TestVeRi:
    @pytest.mark.parametrize("top", ["", "VeRi"])
    def test_cameras_have_three_digits(self, top, root):
        write_all(root / top, VERI)
        dataset = load_reid("veri776", root)
        assert [row[1:] for row in rows(dataset["train"])] == [(1, 1), (4, 20)]
        assert [row[1:] for row in rows(dataset["query"])] == [(2, 2)]
        assert [row[1:] for row in rows(dataset["gallery"])] == [(2, 12), (5, 8)]
        assert names(dataset["train"]) == ["1", "4"]

    def test_a_missing_folder_is_named(self, root):
        write_all(root, VERI[:2])
        with pytest.raises(FileNotFoundError, match=f"{root / 'image_query'} does not exist; .* VeRi"):
            load_reid("veri776", root)


class TestMSMT17:
    @pytest.mark.parametrize("top, version, folder", [
        ("", 1, "train"), ("MSMT17_V1", 1, "train"), ("", 2, "mask_train_v2"), ("MSMT17_V2", 2, "mask_train_v2"),
    ])
    def test_rows(self, top, version, folder, root):
        write_msmt17(root / top, version)
        dataset = load_reid("msmt17", root)
        assert [row[1:] for row in rows(dataset["train"])] == [(0, 1), (0, 14), (1, 2), (1, 15)]
        assert [row[1:] for row in rows(dataset["query"])] == [(0, 7)]
        assert [row[1:] for row in rows(dataset["gallery"])] == [(0, 8), (3, 7)]
        assert names(dataset["train"]) == ["0", "0", "1", "1"]
        path = dataset["train"].cast_column("image", datasets.Image(decode=False))[0]["image"]["path"]
        assert path == str(root / top / folder / "0000" / "0000_000_01_0303morning_0015_0.jpg")

    def test_lists_that_an_editor_of_windows_saved(self, root):
        for path in write_msmt17(root).glob("*.txt"):
            path.write_text(path.read_text(), encoding="utf-8-sig", newline="\r\n")
        assert [row[1:] for row in rows(load_reid("msmt17", root)["gallery"])] == [(0, 8), (3, 7)]

    def test_without_val(self, root, caplog):
        write_msmt17(root)
        (root / "list_val.txt").unlink()
        with caplog.at_level(logging.WARNING):
            dataset = load_reid("msmt17", root, include_val=False)
        assert [row[1:] for row in rows(dataset["train"])] == [(0, 1), (1, 15)]
        assert "officially 1,041 and 30,248; query" in warnings_of(caplog)[0]
        with pytest.raises(FileNotFoundError, match="list_val.txt does not exist; .* MSMT17_V1 or MSMT17_V2"):
            load_reid("msmt17", root)

    def test_the_published_train_has_list_train_and_list_val(self, root, caplog):
        with caplog.at_level(logging.WARNING):
            load_reid("msmt17", write_msmt17(root))
        assert "train has 2 identities and 4 images, officially 1,041 and 32,621" in warnings_of(caplog)[0]

    def test_a_missing_image_is_named_with_its_list(self, root):
        write_msmt17(root)
        gone = root / "test" / "0003" / "0003_002_07_0303noon_0001_0.jpg"
        gone.unlink()
        with pytest.raises(FileNotFoundError, match=f"{gone}, which {root / 'list_gallery.txt'} lists, does not "
                                                    r"exist \(1 missing in total\)"):
            load_reid("msmt17", root)

    @pytest.mark.parametrize("row", ["0000/0000_000_01_0303morning_0015_0.jpg", "0000/0000_000_01_x_0.jpg one"])
    def test_a_row_that_does_not_parse_is_named(self, row, root):
        (write_msmt17(root) / "list_query.txt").write_text(row)
        with pytest.raises(ValueError, match=f"row '{row}' of {root / 'list_query.txt'} is not of the form "
                                             "'0000/0000_000_01_0303morning_0015_0.jpg 0'"):
            load_reid("msmt17", root)

    def test_a_file_name_without_a_camera_is_named(self, root):
        (write_msmt17(root) / "list_query.txt").write_text("0000/photo.jpg 0")
        with pytest.raises(ValueError, match=f"'photo.jpg' in {root / 'list_query.txt'} is not of the form"):
            load_reid("msmt17", root)

    def test_a_missing_folder_and_an_empty_list_are_named(self, root):
        write_msmt17(root)
        (root / "list_query.txt").write_text("\n")
        with pytest.raises(ValueError, match="list_query.txt is empty"):
            load_reid("msmt17", root)
        (root / "test").rename(root / "tset")
        with pytest.raises(FileNotFoundError, match=f"{root / 'test'} does not exist"):
            load_reid("msmt17", root)

    def test_two_versions_are_not_mixed_up(self, root):
        write_msmt17(root / "MSMT17_V1")
        write_msmt17(root / "MSMT17_V2", version=2)
        with pytest.raises(ValueError, match="contains both MSMT17_V1 and MSMT17_V2; set data_dir"):
            load_reid("msmt17", root)
        assert len(load_reid("msmt17", root / "MSMT17_V2")["train"]) == 4


class TestNoMatch:
    def test_other_identities(self, root):
        write_all(root, [name for name in MARKET if "test/0001" not in name and "test/0003" not in name])
        with pytest.raises(ValueError, match=f"no query identity of {root} appears in its gallery: its queries are of "
                                             "identities 1, 3, its gallery of 0. Use the same identities in both"):
            load_reid("market1501", root)

    def test_matches_only_in_the_querys_own_camera(self, root):
        write_all(root, [name for name in MARKET if "test/" not in name])
        write_all(root / "bounding_box_test", ["0001_c1s2_000001_00.jpg", "0003_c3s2_000001_00.jpg"])
        with pytest.raises(ValueError, match="come from the query's own camera, which the protocol ignores. "
                                             "Add images from other cameras, or leave the cameras out"):
            load_reid("market1501", root)

    def test_one_match_is_enough(self, root):
        write_all(root, [name for name in MARKET if "test/0001" not in name])
        assert len(load_reid("market1501", root)["query"]) == 2


def test_built_in_data_set(monkeypatch):
    monkeypatch.setattr("dcal_hf.data.reid.synthetic_reid", lambda: {"train": 1, "query": 2, "gallery": 3})
    assert dict(load_reid("drawn")) == {"train": 1, "query": 2, "gallery": 3}
    assert dict(load_reid("drawn", splits=("gallery",))) == {"gallery": 3}
