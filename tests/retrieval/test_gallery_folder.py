"""Galleries on disk are saved atomically, by one writer at a time, and rejected if they are damaged."""

import importlib
import itertools
import json
import os
import socket
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import faiss
import numpy as np
import pytest

from dcal_hf.retrieval import GalleryIndex

from galleries import MODEL, D, N, clustered, make, table, visible


def test_the_folder(tmp_path):
    gallery = make("IVF8,Flat", "euclidean", model_name="out", search_parameters={"nprobe": 4})
    gallery.save(tmp_path / "deep" / "gallery")
    assert visible(tmp_path / "deep") == ["gallery"]
    folder = tmp_path / "deep" / "gallery"
    description = json.loads((folder / "gallery.json").read_text())
    files = description.pop("files")
    assert description == {
        "format_version": 1, "model_id": MODEL, "model_name": "out", "metric": "euclidean", "normalisation": "none",
        "factory": "IVF8,Flat", "search_parameters": {"nprobe": 4}, "dimension": D, "num_items": N,
    }
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(files) == found - {"gallery.json"}
    assert datasets.load_from_disk(str(folder / "items"))["number"][:] == list(range(N))
    assert faiss.read_index(str(folder / "index.faiss")).ntotal == N


def test_saving_replaces_a_gallery_even_the_loaded_one(tmp_path):
    make(count=5).save(tmp_path / "gallery")
    gallery = GalleryIndex.load(tmp_path / "gallery")
    gallery.add(clustered(3, seed=1), table(3))
    gallery.save(tmp_path / "gallery")
    assert visible(tmp_path) == ["gallery"]
    assert len(GalleryIndex.load(tmp_path / "gallery").items) == len(gallery.items) == 8
    assert gallery.search(clustered(3, seed=1), 1)[1][2] == [{"name": "photo 2", "number": 2}]


def test_saving_replaces_only_galleries(tmp_path):
    (tmp_path / "empty").mkdir()
    make(count=5).save(tmp_path / "empty")
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.jpg").write_text("precious")
    with pytest.raises(FileExistsError, match="photographs has files but no gallery.json"):
        make(count=5).save(tmp_path / "photographs")
    assert (tmp_path / "photographs" / "a.jpg").read_text() == "precious"


def test_a_failed_save_keeps_the_old_gallery(tmp_path, monkeypatch):
    make(count=5).save(tmp_path / "gallery")
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        make(count=6).save(tmp_path / "gallery")
    assert visible(tmp_path) == ["gallery"]
    assert len(GalleryIndex.load(tmp_path / "gallery")) == 5


@pytest.mark.parametrize("reader", ["faiss.read_index", "numpy.load", "dcal_hf.retrieval.gallery.load_from_disk"])
def test_loading_never_mixes_two_versions(tmp_path, monkeypatch, reader):
    make(count=5).save(tmp_path / "gallery")
    module, _, name = reader.rpartition(".")
    original, later = getattr(importlib.import_module(module), name), iter([make(metric="euclidean", count=8)])

    def replaced_by_another_process(*args, **kwargs):
        loaded = original(*args, **kwargs)
        for gallery in later:
            gallery.save(tmp_path / "gallery")
        return loaded

    monkeypatch.setattr(reader, replaced_by_another_process)
    gallery = GalleryIndex.load(tmp_path / "gallery")
    assert (gallery.index.ntotal, len(gallery.items), len(gallery.ids), gallery.metric) == (8, 8, 8, "euclidean")


def test_a_gallery_that_keeps_being_replaced_raises_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("dcal_hf.retrieval.atomic_folder.PAUSE", 0)
    gallery, original = make(count=5), faiss.read_index
    gallery.save(tmp_path / "gallery")

    def replaced(*args):
        gallery.save(tmp_path / "gallery")
        return original(*args)

    monkeypatch.setattr(faiss, "read_index", replaced)
    with pytest.raises(TimeoutError, match="gallery keeps being replaced while it is read: load it when"):
        GalleryIndex.load(tmp_path / "gallery")


def test_a_reader_waits_for_the_moment_between_a_writers_renames(tmp_path, monkeypatch):
    make(count=5).save(tmp_path / "gallery")
    os.rename(tmp_path / "gallery", tmp_path / ".gallery.saving.abc")
    monkeypatch.setattr(time, "sleep", lambda _: os.rename(tmp_path / ".gallery.saving.abc", tmp_path / "gallery"))
    assert len(GalleryIndex.load(tmp_path / "gallery")) == 5


class Killed(BaseException):
    """Raised in place of the end of the process, without any clean-up."""


def kill_at_rename(monkeypatch, number: int) -> None:
    original, calls = os.rename, itertools.count(1)

    def rename(*paths):
        if next(calls) == number:
            raise Killed
        original(*paths)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(TemporaryDirectory, "__exit__", lambda *_: None)
    monkeypatch.setattr(TemporaryDirectory, "_cleanup", lambda *_, **__: None)


# Before the old gallery is moved aside, and before the new one is renamed.
@pytest.mark.parametrize("number", [1, 2])
def test_the_next_writer_removes_the_leftovers_of_a_killed_one(tmp_path, monkeypatch, number):
    make(count=5).save(tmp_path / "gallery")
    with monkeypatch.context() as killed:
        kill_at_rename(killed, number)
        with pytest.raises(Killed):
            make(count=6).save(tmp_path / "gallery")
        assert len(visible(tmp_path)) == 3 - number
    # A failing writer keeps the existing gallery.
    with monkeypatch.context() as failing:
        failing.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            make(count=7).save(tmp_path / "gallery")
    assert visible(tmp_path) == ["gallery"] and len(GalleryIndex.load(tmp_path / "gallery")) == 5


def test_a_second_writer_gets_an_error(tmp_path, monkeypatch):
    original = np.save

    def meanwhile(*args):
        sentence = f"gallery is being saved by process {os.getpid()} on {socket.gethostname()}: wait until it is done"
        with pytest.raises(BlockingIOError, match=sentence):
            make(count=6).save(tmp_path / "gallery")
        original(*args)

    monkeypatch.setattr(np, "save", meanwhile)
    make(count=5).save(tmp_path / "gallery")
    assert len(GalleryIndex.load(tmp_path / "gallery")) == 5


def test_another_model_or_dimension_is_rejected(tmp_path):
    make(count=5, model_name="out").save(tmp_path / "gallery")
    with pytest.raises(ValueError, match=rf"embedded by model {MODEL} \(out\), not by dcal-f00: search it with"):
        GalleryIndex.load(tmp_path / "gallery", model_id="dcal-f00")
    with pytest.raises(ValueError, match="embeddings of 16 dimensions, not 32"):
        GalleryIndex.load(tmp_path / "gallery", MODEL, dimension=32)
    with pytest.raises(FileNotFoundError, match="There is no .*gallery.json"):
        GalleryIndex.load(tmp_path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["index.faiss", "ids.npy", "items/data-00000-of-00001.arrow", "items/state.json"])
@pytest.mark.parametrize(
    ("damage", "message"), [(truncate, "bytes instead of"), (flip, "has changed since"), (Path.unlink, "is missing")]
)
def test_damaged_files_are_rejected(tmp_path, name, damage, message):
    make(count=5).save(tmp_path / "gallery")
    damage(tmp_path / "gallery" / name)
    with pytest.raises(ValueError, match=rf"gallery is damaged: {name}.* {message}"):
        GalleryIndex.load(tmp_path / "gallery")


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("model_id", 3, "model_id of gallery.json has another type"),
        ("search_parameters", {"nprobe": "many"}, "gallery.json: "),
        ("search_parameters", {"nprobe": 0}, "gallery.json: The search parameter 'nprobe' must be at least 1, got 0"),
        ("search_parameters", {"none": 1}, "gallery.json: An index 'IVF1,Flat' has no search parameter 'none'"),
        ("metric", "manhattan", "gallery.json does not describe its files"),
        ("num_items", 6, "gallery.json does not describe its files"),
        ("dimension", 3, "gallery.json does not describe its files"),
        ("files", {"index.faiss": 3}, "the size and checksum of index.faiss are not recorded"),
        ("files", None, "files of gallery.json has another type"),
        ("factory", ..., "gallery.json has no factory"),
    ],
)
def test_a_changed_description_is_rejected(tmp_path, field, value, sentence):
    make("IVF1,Flat", count=40).save(tmp_path / "gallery")
    path = tmp_path / "gallery" / "gallery.json"
    description = json.loads(path.read_text()) | {field: None if value is ... else value}
    if value is ...:
        del description[field]
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=f"gallery is damaged: {sentence}"):
        GalleryIndex.load(tmp_path / "gallery")
    path.write_text("[1]")
    with pytest.raises(ValueError, match="gallery is damaged: gallery.json is not a JSON object"):
        GalleryIndex.load(tmp_path / "gallery")


def test_an_index_cannot_point_to_a_file_elsewhere(tmp_path):
    """faiss would open the file that the index names, and write added embeddings into it."""
    gallery = make("IVF2,Flat", count=80)
    gallery.index.reset()
    lists = faiss.OnDiskInvertedLists(2, gallery.index.code_size, str(tmp_path / "precious"))
    gallery.index.replace_invlists(lists)
    gallery.index.add_with_ids(clustered(80), gallery.ids)
    gallery.save(tmp_path / "gallery")
    precious = (tmp_path / "precious").stat().st_size * b"."
    (tmp_path / "precious").write_bytes(precious)
    with pytest.raises(ValueError, match="gallery is damaged: index.faiss cannot be read: .*precious"):
        GalleryIndex.load(tmp_path / "gallery").add(clustered(3), table(3))
    assert (tmp_path / "precious").read_bytes() == precious


@pytest.mark.parametrize("kind", [datasets.Image(), datasets.List(datasets.Image()), datasets.Pdf()], ids=str)
def test_items_are_never_decoded(tmp_path, kind):
    """Pillow would decode any of its formats, of which EPS runs a program, and read paths that are URLs."""
    gallery, feature = make(count=1), datasets.Features(image=kind)
    content = [b"%!PS-Adobe-3.0 EPSF-3.0"] if isinstance(kind, datasets.List) else b"%!PS-Adobe-3.0 EPSF-3.0"
    gallery.items = datasets.Dataset.from_dict({"image": [content]}, features=feature)
    gallery.save(tmp_path / "gallery")
    with pytest.raises(ValueError, match="gallery is damaged: its items have encoded files in the column image"):
        GalleryIndex.load(tmp_path / "gallery")


def test_a_damaged_or_newer_description_is_rejected(tmp_path):
    make(count=5).save(tmp_path / "gallery")
    path = tmp_path / "gallery" / "gallery.json"
    content = path.read_text()
    truncate(path)
    with pytest.raises(ValueError, match="gallery is damaged: gallery.json is not valid JSON"):
        GalleryIndex.load(tmp_path / "gallery")
    path.write_text(content.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ValueError, match="has format version 2, and this dcal_hf reads 1"):
        GalleryIndex.load(tmp_path / "gallery")
