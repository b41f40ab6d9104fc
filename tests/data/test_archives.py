import errno
import gzip
import io
import logging
import os
import shutil
import tarfile
import zipfile

import datasets
import pytest
from PIL import Image

from dcal_hf.data import load_fgvc, load_reid
from dcal_hf.data.archives import FREE_BYTES, data_folder


FORMATS = {".tar": "tar", ".tar.gz": "gztar", ".tgz": "gztar", ".zip": "zip"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder for unpacked archives."""
    folder = tmp_path / "cache" / "extracted"
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", folder)
    return folder


def write_images(root, *names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number, 0, 0)).save(root / name)
    return root


def pack(root, archive, top=""):
    """Packs the content of `root`, inside a folder `top` if given."""
    suffix = next(suffix for suffix in FORMATS if archive.name.endswith(suffix))
    folder = root
    if top:
        folder = root.parent / f"{root.name}-top"
        shutil.copytree(root, folder / top)
    made = shutil.make_archive(str(archive) + "-made", FORMATS[suffix], folder)
    os.rename(made, archive)
    return archive


def unpacked(cache):
    """The content of the cache, without lock files."""
    return sorted(path for path in cache.iterdir() if path.suffix != ".lock") if cache.is_dir() else []


def paths(part):
    return [record["path"] for record in part.cast_column("image", datasets.Image(decode=False))["image"]]


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "dcal_hf.data.archives"]


class TestUnpacking:
    @pytest.mark.parametrize("suffix", FORMATS)
    def test_every_kind(self, suffix, tmp_path, cache):
        root = write_images(tmp_path / "birds", "owl/a b.png", "auk/1.png")
        folder = data_folder(pack(root, tmp_path / f"birds{suffix}"))
        assert folder.parent == cache
        assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png")) == [
            "auk/1.png", "owl/a b.png",
        ]
        assert (folder / "owl" / "a b.png").read_bytes() == (root / "owl" / "a b.png").read_bytes()
        assert unpacked(cache) == [folder]

    def test_a_folder_is_returned_unchanged(self, tmp_path, cache):
        assert data_folder(tmp_path) == tmp_path
        assert not cache.exists()

    def test_only_once_and_with_one_line(self, tmp_path, cache, caplog):
        archive = pack(write_images(tmp_path / "birds", "owl/1.png", "auk/1.png"), tmp_path / "birds.zip")
        with caplog.at_level(logging.INFO):
            folder = data_folder(archive)
        assert messages(caplog) == [f"Unpacking {archive} into {folder}"]
        (folder / "mark").write_text("")
        with caplog.at_level(logging.INFO):
            assert data_folder(archive) == folder
        assert (folder / "mark").exists()
        assert len(messages(caplog)) == 1

    def test_another_archive_of_the_same_name_is_unpacked_again(self, tmp_path):
        archive = pack(write_images(tmp_path / "one", "owl/1.png", "auk/1.png"), tmp_path / "birds.tar")
        first = data_folder(archive)
        size = archive.stat().st_size
        pack(write_images(tmp_path / "two", "owl/2.png", "auk/2.png"), archive)
        assert archive.stat().st_size == size
        os.utime(archive, (1, 1))
        second = data_folder(archive)
        assert (first / "owl" / "1.png").exists()
        assert sorted(path.name for path in second.rglob("*.png")) == ["2.png", "2.png"]

    def test_leftovers_of_a_killed_process_are_not_used(self, tmp_path, cache):
        archive = pack(write_images(tmp_path / "birds", "owl/1.png", "auk/1.png"), tmp_path / "birds.tar")
        folder = data_folder(archive)
        (folder / "owl" / "1.png").unlink()
        (folder / "owl" / "rest").write_text("x")
        folder.rename(f"{folder}.incomplete")
        assert data_folder(archive) == folder
        assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["1.png", "1.png"]
        assert unpacked(cache) == [folder]

    def test_the_cache_of_the_caller(self, tmp_path, cache):
        archive = pack(write_images(tmp_path / "birds", "owl/1.png", "auk/1.png"), tmp_path / "birds.tar")
        dataset = load_fgvc(str(archive), cache_dir=tmp_path / "mine", validation_fraction=0)
        assert all(path.startswith(str(tmp_path / "mine" / "extracted")) for path in paths(dataset["train"]))
        assert not cache.exists()

    @pytest.mark.parametrize("names, top", [
        (("birds/owl/1.png", "birds/auk/1.png"), "birds"), (("train/owl/1.png", "train/auk/1.png"), ""),
        (("query/1/1.png", ".DS_Store/1.png"), ""), (("birds/owl/1.png", "more/1.png"), ""), (("1.png",), ""),
    ])
    def test_a_single_inner_folder_is_returned_unless_it_is_a_split(self, names, top, tmp_path, cache):
        folder = data_folder(pack(write_images(tmp_path / "root", *names), tmp_path / "birds.zip"))
        assert folder == unpacked(cache)[0] / top

    def test_macos_metadata_is_not_unpacked(self, tmp_path, cache):
        root = write_images(tmp_path / "root", "birds/owl/1.png", "__MACOSX/birds/owl/1.png")
        assert data_folder(pack(root, tmp_path / "birds.zip")) == unpacked(cache)[0] / "birds"
        assert [path.name for path in unpacked(cache)[0].iterdir()] == ["birds"]


class TestLoaders:
    @pytest.mark.parametrize("suffix", FORMATS)
    @pytest.mark.parametrize("top", ["", "birds"])
    def test_image_folders(self, suffix, top, tmp_path):
        root = write_images(tmp_path / "root", "train/owl/1.png", "train/auk/1.png", "val/owl/2.png")
        archive = pack(root, tmp_path / f"birds{suffix}", top)
        for dataset in (load_fgvc(str(archive)), load_fgvc("imagefolder", archive)):
            assert {split: len(part) for split, part in dataset.items()} == {"train": 2, "validation": 1}
            assert dataset["validation"].features["label"].names == ["auk", "owl"]
            assert dataset["validation"][0]["image"].getpixel((0, 0)) == (2, 0, 0)

    def test_an_archive_per_split(self, tmp_path):
        train = pack(write_images(tmp_path / "a", "owl/1.png", "auk/1.png"), tmp_path / "train.tgz")
        test = pack(write_images(tmp_path / "b", "owl/3.png", "auk/3.png"), tmp_path / "test.zip")
        dataset = load_fgvc("imagefolder", {"train": train, "validation": test})
        assert [path.split("/")[-2:] for path in paths(dataset["validation"])] == [["auk", "3.png"], ["owl", "3.png"]]

    @pytest.mark.parametrize("suffix", FORMATS)
    @pytest.mark.parametrize("top", ["", "CUB_200_2011"])
    def test_official_classes(self, suffix, top, tmp_path, cache):
        root = write_images(tmp_path / "root", "images/1.png", "images/2.png")
        for name, text in {"classes": "1 owl", "images": "1 1.png\n2 2.png", "image_class_labels": "1 1\n2 1",
                           "train_test_split": "1 0\n2 1"}.items():
            (root / f"{name}.txt").write_text(text)
        archive = pack(root, tmp_path / f"CUB_200_2011{suffix}", top)
        dataset = load_fgvc("cub200", archive, validation_fraction=0)
        assert paths(dataset["train"]) == [str(unpacked(cache)[0] / top / "images" / "2.png")]
        assert dataset["test"][0]["image"].getpixel((0, 0)) == (0, 0, 0)

    @pytest.mark.parametrize("suffix", FORMATS)
    @pytest.mark.parametrize("top", ["", "Market-1501-v15.09.15"])
    def test_official_identities(self, suffix, top, tmp_path, cache):
        names = ["bounding_box_train/0002_c1s1_000451_03.jpg", "query/0001_c1s1_001051_00.jpg",
                 "bounding_box_test/0001_c2s1_001976_01.jpg"]
        archive = pack(write_images(tmp_path / "root", *names), tmp_path / f"market{suffix}", top)
        dataset = load_reid("market1501", archive)
        assert paths(dataset["query"]) == [str(unpacked(cache)[0] / top / names[1])]
        assert dataset["gallery"]["identity"][:] == [1]

    @pytest.mark.parametrize("top", ["", "turtles"])
    def test_identity_folders(self, top, tmp_path):
        root = write_images(tmp_path / "root", "train/1/1.png", "query/2/1.png", "gallery/2/2.png")
        archive = pack(root, tmp_path / "turtles.tar.gz", top)
        for dataset in (load_reid(archive), load_reid("imagefolder", str(archive))):
            assert {split: part["identity"][:] for split, part in dataset.items()} == {
                "train": [1], "query": [2], "gallery": [2],
            }

    def test_an_archive_of_queries_only(self, tmp_path):
        root = write_images(tmp_path / "root", "query/1/1.png", "query/2/1.png")
        dataset = load_reid(pack(root, tmp_path / "turtles.zip"), splits=("query",))
        assert dataset["query"]["identity"][:] == [1, 2]

    def test_other_files_are_rejected(self, tmp_path):
        (tmp_path / "birds.rar").write_bytes(b"x")
        path = str(tmp_path / "birds.rar")
        calls = [(load_fgvc, "cub200", path), (load_fgvc, "imagefolder", path), (load_fgvc, path),
                 (load_reid, "market1501", path), (load_reid, path)]
        for load, *arguments in calls:
            with pytest.raises(ValueError, match=r"birds.rar is neither a folder nor an archive .*\(.tar, .tar.gz, "):
                load(*arguments)


def write_tar(path, *members):
    """Members are names of small files, or `TarInfo`."""
    with tarfile.open(path, "w:gz") as file:
        file.addfile(tarfile.TarInfo("owl/1.png"), io.BytesIO())
        for member in members:
            file.addfile(tarfile.TarInfo(member) if isinstance(member, str) else member, io.BytesIO())
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def special(name, kind):
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


LEAVING = (
    "../evil", "owl/../../evil", "/tmp/evil", link("out", "/etc"), link("out", "../.."), link("owl/out", "../../x"),
    link("hard", "../../x", tarfile.LNKTYPE), link("hard", "/etc/hosts", tarfile.LNKTYPE),
    special("pipe", tarfile.FIFOTYPE), special("device", tarfile.CHRTYPE),
)


class TestSafety:
    @pytest.mark.parametrize(
        "member", LEAVING, ids=lambda member: member if isinstance(member, str) else f"{member.name} {member.linkname}"
    )
    def test_tar_members_outside_the_folder_are_rejected(self, member, tmp_path, cache):
        archive = write_tar(tmp_path / "birds.tgz", member)
        name = member if isinstance(member, str) else member.name
        with pytest.raises(ValueError, match=f"the archive {archive} holds '{name}', which would be outside"):
            load_fgvc("imagefolder", archive)
        assert unpacked(cache) == []
        assert not list(tmp_path.rglob("evil"))

    def test_a_file_cannot_be_written_through_a_link(self, tmp_path, cache):
        outside = tmp_path / "outside"
        outside.mkdir()
        archive = write_tar(tmp_path / "birds.tgz", link("out", str(outside)), "out/evil")
        with pytest.raises(ValueError, match="holds 'out', which would be outside"):
            data_folder(archive)
        assert not list(outside.iterdir())

    def test_a_link_inside_is_kept(self, tmp_path):
        folder = data_folder(write_tar(tmp_path / "birds.tgz", link("auk/1.png", "../owl/1.png")))
        assert (folder / "auk" / "1.png").resolve() == (folder / "owl" / "1.png").resolve()

    @pytest.mark.parametrize("name", ["../evil", "owl/../../evil", "/tmp/evil"])
    def test_zip_members_outside_the_folder_are_rejected(self, name, tmp_path, cache):
        archive = tmp_path / "birds.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("owl/1.png", "x")
            file.writestr(name, "x")
        with pytest.raises(ValueError, match=f"the archive {archive} holds '{name}', which would be outside"):
            load_fgvc("imagefolder", archive)
        assert unpacked(cache) == []
        assert not list(tmp_path.rglob("evil"))

    def test_a_link_in_a_zip_becomes_a_file(self, tmp_path):
        info = zipfile.ZipInfo("owl/out")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        with zipfile.ZipFile(tmp_path / "birds.zip", "w") as file:
            file.writestr(info, "/etc/hosts")
            file.writestr("auk/1.png", "x")
        path = data_folder(tmp_path / "birds.zip") / "owl" / "out"
        assert not path.is_symlink()
        assert path.read_text() == "/etc/hosts"


class TestDamage:
    @pytest.mark.parametrize("suffix", FORMATS)
    @pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100])
    def test_files_that_are_no_archives_raise_one_line(self, suffix, content, tmp_path, cache):
        archive = tmp_path / f"birds{suffix}"
        archive.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            load_fgvc("imagefolder", archive)
        assert str(caught.value).startswith(f"the archive {archive} cannot be unpacked (")
        assert "\n" not in str(caught.value)
        assert unpacked(cache) == []

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_a_truncated_archive(self, suffix, tmp_path, cache):
        root = write_images(tmp_path / "root", "owl/1.png", "auk/1.png")
        (root / "owl" / "noise.png").write_bytes(os.urandom(200_000))
        archive = pack(root, tmp_path / f"birds{suffix}")
        archive.write_bytes(archive.read_bytes()[:100_000])
        with pytest.raises(ValueError, match=f"the archive {archive} cannot be unpacked .* download it again"):
            load_reid(archive)
        assert unpacked(cache) == []

    @pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
    def test_a_flipped_byte(self, suffix, tmp_path, cache):
        root = write_images(tmp_path / "root", "owl/1.png", "auk/1.png")
        (root / "owl" / "noise.png").write_bytes(os.urandom(200_000))
        archive = pack(root, tmp_path / f"birds{suffix}")
        content = bytearray(archive.read_bytes())
        content[100_000] ^= 0xFF
        archive.write_bytes(content)
        with pytest.raises(ValueError, match=f"the archive {archive} cannot be unpacked"):
            data_folder(archive)
        assert unpacked(cache) == []

    def test_unexpected_errors_of_the_decoders(self, tmp_path, cache):
        """Errors of the system and of decoders, among those of tarfile and zipfile."""
        archives = [write_tar(tmp_path / "deep.tgz", "owl/" + "x" * 300), tmp_path / "bzip2.zip"]
        archives += [write_tar(tmp_path / "link.tgz", link("owl/2.png", "3.png", tarfile.LNKTYPE))]
        with zipfile.ZipFile(archives[1], "w", zipfile.ZIP_BZIP2) as file:
            file.writestr("owl/1.png", "x" * 1000)
        content = archives[1].read_bytes()
        archives[1].write_bytes(content.replace(b"BZh9", b"BZh0"))
        with zipfile.ZipFile(tmp_path / "stored.zip", "w") as file:
            file.writestr("owl/1.png", "x")
        # The offset of the member list is before the start of the file.
        content = bytearray((tmp_path / "stored.zip").read_bytes())
        content[-6:-2] = b"\xff\xff\xff\x7f"
        archives.append(tmp_path / "before.zip")
        archives[-1].write_bytes(content)
        for archive in archives:
            with pytest.raises(ValueError, match=f"the archive {archive} cannot be unpacked") as caught:
                data_folder(archive)
            assert "\n" not in str(caught.value)
        assert unpacked(cache) == []

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=os.strerror)
    def test_a_full_disk_is_not_reported_as_damage(self, tmp_path, monkeypatch, number):
        """Nor is a quota, or the largest file of a file system or process."""

        def full(*args, **kwargs):
            raise OSError(number, os.strerror(number), str(tmp_path / "owl"))

        monkeypatch.setattr(tarfile.TarFile, "extractall", full)
        with pytest.raises(OSError, match=f"{os.strerror(number)}: .*owl"):
            data_folder(write_tar(tmp_path / "birds.tgz"))

    def test_an_encrypted_zip(self, tmp_path, cache):
        archive = tmp_path / "birds.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("owl/1.png", "x")
        content = bytearray(archive.read_bytes())
        content[6] |= 1
        content[content.index(b"PK\x01\x02") + 8] |= 1
        archive.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be unpacked \(.*encrypted, password required"):
            data_folder(archive)
        assert unpacked(cache) == []


class TestBombs:
    """Archives of zeros, of which a megabyte takes a kilobyte."""

    def bomb(self, tmp_path, suffix, size):
        (tmp_path / "root" / "wren").mkdir(parents=True)
        (tmp_path / "root" / "wren" / "0.png").write_bytes(bytes(size))
        return pack(tmp_path / "root", tmp_path / f"bomb{suffix}")

    @pytest.mark.parametrize("suffix", [".tgz", ".zip"])
    def test_an_archive_that_unpacks_to_too_much_is_rejected(self, suffix, tmp_path, cache):
        archive = self.bomb(tmp_path, suffix, FREE_BYTES + 1)
        assert archive.stat().st_size < FREE_BYTES / 500
        with pytest.raises(ValueError, match="bomb.* holds more than 104,857,600 bytes; .* raise max_unpacked_bytes"):
            data_folder(archive)
        assert unpacked(cache) == []

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_the_limit_can_be_raised(self, suffix, tmp_path, cache):
        archive = self.bomb(tmp_path, suffix, 30_000)
        with pytest.raises(ValueError, match="holds more than 29,999 bytes"):
            data_folder(archive, max_unpacked_bytes=29_999)
        assert (data_folder(archive, max_unpacked_bytes=60_000) / "0.png").stat().st_size == 30_000

    def test_empty_members_count(self, tmp_path):
        """A gigabyte of them takes two megabytes, and a minute to unpack."""
        archive = write_tar(tmp_path / "bomb.tgz", *(f"owl/{number}.png" for number in range(2, 40)))
        with pytest.raises(ValueError, match="holds more than 10,000 bytes"):
            data_folder(archive, max_unpacked_bytes=10_000)
        assert len(list(data_folder(archive, max_unpacked_bytes=60_000).iterdir())) == 39

    def test_what_follows_the_last_member_counts(self, tmp_path):
        archive = self.bomb(tmp_path, ".tgz", 10)
        with gzip.open(archive, "ab") as file:
            file.write(bytes(1 << 21))
        with pytest.raises(ValueError, match="holds more than 1,000,000 bytes"):
            data_folder(archive, max_unpacked_bytes=1_000_000)

    def test_the_loaders_take_the_limit(self, tmp_path):
        archive = self.bomb(tmp_path, ".zip", 30_000)
        for load in (load_fgvc, load_reid):
            with pytest.raises(ValueError, match="holds more than 29,999 bytes"):
                load("imagefolder", archive, max_unpacked_bytes=29_999)
