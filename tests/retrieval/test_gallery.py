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
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from dcal_hf.retrieval import GalleryIndex, rerank


N, D = 500, 16
MODEL = "dcal-0123456789abcdef"


def clustered(count: int = N, seed: int = 0) -> np.ndarray:
    """Twenty clusters, of lengths other than 1."""
    numbers = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, D))
    return (centres[numbers.integers(0, 20, count)] + 0.5 * numbers.normal(size=(count, D))).astype(np.float32)


def table(count: int = N, start: int = 0) -> dict[str, list]:
    return {"name": [f"photo {start + i}" for i in range(count)], "number": list(range(start, start + count))}


def exact(queries: np.ndarray, gallery: np.ndarray, metric: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    if metric == "cosine":
        queries, gallery = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (queries, gallery))
        scores, order = queries @ gallery.T, -(queries @ gallery.T)
    else:
        scores = order = np.linalg.norm(queries[:, None] - gallery, axis=2)
    rows = order.argsort(axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def make(factory: str = "Flat", metric: str = "cosine", count: int = N, **options) -> GalleryIndex:
    return GalleryIndex.from_embeddings(
        clustered(count), table(count), model_id=MODEL, factory=factory, metric=metric, **options
    )


def visible(folder: Path) -> list[str]:
    """What lies in a folder besides the lock."""
    return [name for name in os.listdir(folder) if name != ".gallery.lock"]


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    return np.mean([len(np.intersect1d(*pair)) / expected.shape[1] for pair in zip(found, expected)])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_flat_search_is_exact(metric):
    queries = clustered(30, seed=1)
    expected_scores, expected_rows = exact(queries, clustered(), metric, 7)
    gallery = make(metric=metric)
    for asked in (queries, torch.tensor(queries, dtype=torch.float64, requires_grad=True)):
        scores, items = gallery.search(asked, k=7)
        np.testing.assert_allclose(scores, expected_scores, atol=2e-6)
        assert [[item["number"] for item in found] for found in items] == expected_rows.tolist()
    assert items[0][0] == {"name": f"photo {expected_rows[0, 0]}", "number": expected_rows[0, 0]}
    assert (gallery.search_rows(queries, 7)[1] == expected_rows).all()
    assert (len(gallery), gallery.dimension) == (N, D)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_scores_as_distances(metric):
    generator = np.random.default_rng(0)
    queries, embeddings = (generator.normal(size=(n, 8)).astype(np.float32) for n in (3, 40))
    gallery = GalleryIndex.from_embeddings(embeddings, table(40), model_id="model", metric=metric)
    scores, rows = gallery.search_rows(queries, 5)
    if metric == "cosine":
        queries, embeddings = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (queries, embeddings))
    expected = np.linalg.norm(queries[:, None] - embeddings[rows], axis=2)
    np.testing.assert_allclose(gallery.distances(scores), expected, atol=1e-5)
    assert (np.diff(gallery.distances(scores), axis=1) >= 0).all()


def test_embeddings_are_not_changed():
    embeddings = clustered()
    GalleryIndex.from_embeddings(embeddings, table(), model_id=MODEL)
    assert (embeddings == clustered()).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    ("factory", "search_parameters", "least"),
    [
        ("IVF8,Flat", {"nprobe": 8}, 1.0),
        ("IDMap,Flat", {}, 1.0),
        ("HNSW16", {"efSearch": 200}, 0.99),
        ("PCA16,Flat", {}, 0.99),
        ("SQ8", {}, 0.9),
        ("PQ8x4", {}, 0.5),
        ("IVF8,PQ8x4", {"nprobe": 4}, 0.5),
        ("OPQ8,IVF8,PQ8x4", {"nprobe": 4}, 0.5),
        ("IVF8,PQ8x4,RFlat", {"nprobe": 8, "k_factor_rf": 10}, 0.99),
        ("IVF8_HNSW8,Flat", {"nprobe": 8}, 0.99),
    ],
)
def test_any_factory(tmp_path, metric, factory, search_parameters, least):
    queries = clustered(40, seed=1)
    gallery = make(factory, metric, search_parameters=search_parameters)
    scores, rows = gallery.search_rows(queries, 10)
    assert recall(rows, exact(queries, clustered(), metric, 10)[1]) >= least
    gallery.save(tmp_path / "gallery")
    loaded = GalleryIndex.load(tmp_path / "gallery")
    assert loaded.search_parameters == search_parameters
    for found, again in zip((scores, rows), loaded.search_rows(queries, 10)):
        assert (found == again).all()
    loaded.add(queries, table(40, start=N))
    assert (loaded.search_rows(queries, 1)[1][:, 0] >= N).mean() >= least


def test_search_parameters_count():
    queries = clustered(40, seed=1)
    expected = exact(queries, clustered(), "cosine", 10)[1]
    gallery = make("IVF32,Flat")
    few = recall(gallery.search_rows(queries, 10)[1], expected)
    gallery.set_search_parameters(nprobe=32)
    assert few < recall(gallery.search_rows(queries, 10)[1], expected) == 1
    with pytest.raises(ValueError, match="'IVF32,Flat' has no search parameter 'efSearch'"):
        gallery.set_search_parameters(efSearch=8)
    assert gallery.search_parameters == {"nprobe": 32}


def test_fewer_matches_than_asked_for():
    gallery = make("IVF32,Flat", search_parameters={"nprobe": 1})
    scores, rows = gallery.search_rows(clustered(3, seed=1), N)
    assert scores.shape == rows.shape == (3, N)
    assert ((rows == -1) == np.isnan(scores)).all() and (rows[:, 0] >= 0).all() and (rows[:, -1] == -1).all()
    assert [len(found) for found in gallery.search(clustered(3, seed=1), N)[1]] == (rows >= 0).sum(axis=1).tolist()
    assert make(count=3).search(clustered(2, seed=1), 10)[0].shape == (2, 3)


def test_training_on_some():
    gallery = make("IVF8,Flat", training_size=320, search_parameters={"nprobe": 8})
    queries = clustered(5, seed=1)
    assert (gallery.search_rows(queries, 3)[1] == exact(queries, clustered(), "cosine", 3)[1]).all()


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "SQ8", "PCA16,IVF8,SQ8"])
def test_removing_and_adding(tmp_path, factory):
    embeddings, queries = clustered(), clustered(20, seed=1)
    gallery = make(factory)
    nprobe = {"nprobe": 8} if "IVF" in factory else {}
    gallery.set_search_parameters(**nprobe)
    gallery.remove([3, N - 1, 250])
    gallery.remove(np.array(gallery.items["number"]) % 2 == 0)
    gallery.remove([])
    kept = np.array([i for i in range(N) if i % 2 and i not in (3, N - 1)])
    gallery.save(tmp_path / "gallery")
    gallery = GalleryIndex.load(tmp_path / "gallery", MODEL, D)
    gallery.add(clustered(30, seed=2), table(30, start=1000))
    assert gallery.items["number"][:] == [*kept, *range(1000, 1030)]
    stored = np.concatenate([embeddings[kept], clustered(30, seed=2)])
    rows = gallery.search_rows(queries, 10)[1]
    assert recall(rows, exact(queries, stored, "cosine", 10)[1]) >= (0.95 if "SQ8" in factory else 1)
    # Each row of the table still belongs to its vector.
    assert (gallery.search_rows(stored, 1)[1][:, 0] == np.arange(len(stored))).mean() > 0.99


def test_unknown_rows_are_not_removed():
    gallery = make(count=5)
    with pytest.raises(IndexError):
        gallery.remove([5])
    gallery.remove(range(5))
    assert len(gallery) == 0
    with pytest.raises(ValueError, match="items to find, got k=10 and 0 items"):
        gallery.search(clustered(1))
    gallery.add(clustered(2), table(2))
    assert gallery.search_rows(clustered(2), 1)[1].tolist() == [[0], [1]]


def test_an_index_that_cannot_forget():
    gallery = make("HNSW8", count=50)
    with pytest.raises(ValueError, match="'HNSW8' cannot remove items: build it again"):
        gallery.remove([3])
    assert len(gallery) == len(gallery.items) == 50
    assert gallery.search_rows(clustered(50)[3:4], 1)[1] == 3


@pytest.mark.parametrize(
    ("embeddings", "items", "message"),
    [
        (np.zeros((3, D + 1), np.float32), table(3), r"shape \(N, 16\) with at least one row, got \(3, 17\)"),
        (np.zeros(D, np.float32), table(3), r"got \(16,\)"),
        (np.zeros((0, D), np.float32), table(0), r"got \(0, 16\)"),
        (np.full((3, D), np.nan, np.float32), table(3), "finite, but row 0 is not"),
        (np.zeros((3, D), np.float32), table(2), "got 2 items and 3 embeddings"),
        (np.zeros((3, D), np.float32), {"name": ["a"] * 3}, r"have columns \['name', 'number'\], not \['name'\]"),
        (np.zeros((3, D), np.float32), {"name": [1] * 3, "number": [1] * 3}, "align"),
    ],
)
def test_what_does_not_fit_is_not_added(embeddings, items, message):
    gallery = make(count=10)
    with pytest.raises(ValueError, match=message):
        gallery.add(embeddings, items)
    assert len(gallery) == len(gallery.items) == gallery.index.ntotal == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factory": "IVF64,Flat", "count": 5}, r"cannot be trained on 5 embeddings \(Number of training points"),
        ({"factory": "PQ4", "count": 100}, "clusters .256.*give more, or choose a smaller one, such as 'Flat'"),
        ({"factory": "Nonsense"}, "makes no index 'Nonsense' of 16 dimensions: could not parse index string"),
        ({"factory": "PQ5"}, r"The dimension of the vector \(d\) should be a multiple"),
        ({"metric": "manhattan"}, "must be \"cosine\" or \"euclidean\", got 'manhattan'"),
        ({"search_parameters": {"nprobe": 4}}, "'Flat' has no search parameter 'nprobe'"),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_what_cannot_be_asked():
    gallery = make(count=5)
    with pytest.raises(ValueError, match="k=0"):
        gallery.search(clustered(1), k=0)
    with pytest.raises(ValueError, match=r"shape \(N, 16\)"):
        gallery.search(np.ones((1, 8), np.float32))


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


def test_saving_replaces_a_gallery_even_its_own(tmp_path):
    make(count=5).save(tmp_path / "gallery")
    gallery = GalleryIndex.load(tmp_path / "gallery")
    gallery.add(clustered(3, seed=1), table(3))
    gallery.save(tmp_path / "gallery")
    assert visible(tmp_path) == ["gallery"]
    assert len(GalleryIndex.load(tmp_path / "gallery").items) == len(gallery.items) == 8
    assert gallery.search(clustered(3, seed=1), 1)[1][2] == [{"name": "photo 2", "number": 2}]


def test_saving_replaces_nothing_else(tmp_path):
    (tmp_path / "empty").mkdir()
    make(count=5).save(tmp_path / "empty")
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.jpg").write_text("precious")
    with pytest.raises(FileExistsError, match="photographs has files but no gallery.json"):
        make(count=5).save(tmp_path / "photographs")
    assert (tmp_path / "photographs" / "a.jpg").read_text() == "precious"


def test_a_failed_save_leaves_the_old_gallery(tmp_path, monkeypatch):
    make(count=5).save(tmp_path / "gallery")
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        make(count=6).save(tmp_path / "gallery")
    assert visible(tmp_path) == ["gallery"]
    assert len(GalleryIndex.load(tmp_path / "gallery")) == 5


@pytest.mark.parametrize("reader", ["faiss.read_index", "numpy.load", "dcal_hf.retrieval.gallery.load_from_disk"])
def test_a_gallery_that_is_replaced_while_it_is_loaded_is_never_half_of_two(tmp_path, monkeypatch, reader):
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


def test_a_gallery_that_is_replaced_all_the_time_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("dcal_hf.retrieval.sealed_folder.PAUSE", 0)
    gallery, original = make(count=5), faiss.read_index
    gallery.save(tmp_path / "gallery")

    def replaced(path):
        gallery.save(tmp_path / "gallery")
        return original(path)

    monkeypatch.setattr(faiss, "read_index", replaced)
    with pytest.raises(RuntimeError, match="gallery is replaced again and again while it is read: load it when"):
        GalleryIndex.load(tmp_path / "gallery")


def test_a_reader_waits_for_the_moment_between_a_writers_renames(tmp_path, monkeypatch):
    make(count=5).save(tmp_path / "gallery")
    os.rename(tmp_path / "gallery", tmp_path / ".gallery.saving.abc")
    monkeypatch.setattr(time, "sleep", lambda _: os.rename(tmp_path / ".gallery.saving.abc", tmp_path / "gallery"))
    assert len(GalleryIndex.load(tmp_path / "gallery")) == 5


class Killed(BaseException):
    """As if the process ended here: nothing behind it runs, no clearing up either."""


def kill_at_rename(monkeypatch, number: int) -> None:
    original, calls = os.rename, itertools.count(1)

    def rename(*paths):
        if next(calls) == number:
            raise Killed
        original(*paths)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(TemporaryDirectory, "__exit__", lambda *_: None)
    monkeypatch.setattr(TemporaryDirectory, "_cleanup", lambda *_, **__: None)


# Before what lies there is moved aside; and before the new one gets its place.
@pytest.mark.parametrize("number", [1, 2])
def test_the_next_writer_clears_up_after_a_killed_one(tmp_path, monkeypatch, number):
    make(count=5).save(tmp_path / "gallery")
    with monkeypatch.context() as killed:
        kill_at_rename(killed, number)
        with pytest.raises(Killed):
            make(count=6).save(tmp_path / "gallery")
        assert len(visible(tmp_path)) == 3 - number
    # Even a writer that fails leaves the gallery that was there.
    with monkeypatch.context() as failing:
        failing.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            make(count=7).save(tmp_path / "gallery")
    assert visible(tmp_path) == ["gallery"] and len(GalleryIndex.load(tmp_path / "gallery")) == 5


def test_of_two_writers_one_wins_and_the_other_is_told_of_it(tmp_path, monkeypatch):
    original = np.save

    def meanwhile(*args):
        sentence = f"gallery is being saved by process {os.getpid()} on {socket.gethostname()}: wait until it is done"
        with pytest.raises(RuntimeError, match=sentence):
            make(count=6).save(tmp_path / "gallery")
        original(*args)

    monkeypatch.setattr(np, "save", meanwhile)
    make(count=5).save(tmp_path / "gallery")
    assert len(GalleryIndex.load(tmp_path / "gallery")) == 5


def test_another_model_or_dimension_is_refused(tmp_path):
    make(count=5, model_name="out").save(tmp_path / "gallery")
    with pytest.raises(ValueError, match=rf"embedded by model {MODEL} \(out\), not by dcal-f00: search it with"):
        GalleryIndex.load(tmp_path / "gallery", model_id="dcal-f00")
    with pytest.raises(ValueError, match="embeddings of 16 numbers, not of 32"):
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
    ("damage", "message"), [(truncate, "bytes instead of"), (flip, "not what was saved"), (Path.unlink, "is missing")]
)
def test_damage_is_refused(tmp_path, name, damage, message):
    make(count=5).save(tmp_path / "gallery")
    damage(tmp_path / "gallery" / name)
    with pytest.raises(ValueError, match=rf"gallery is damaged: {name}.* {message}"):
        GalleryIndex.load(tmp_path / "gallery")


def test_a_damaged_or_newer_description_is_refused(tmp_path):
    make(count=5).save(tmp_path / "gallery")
    path = tmp_path / "gallery" / "gallery.json"
    content = path.read_text()
    truncate(path)
    with pytest.raises(ValueError, match="gallery is damaged: gallery.json is no JSON"):
        GalleryIndex.load(tmp_path / "gallery")
    path.write_text(content.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ValueError, match="has format version 2, and this dcal_hf reads 1"):
        GalleryIndex.load(tmp_path / "gallery")


def test_images_are_recorded_not_copied(tmp_path):
    for name in ("a", "b"):
        PILImage.effect_noise((200, 200), 50).save(tmp_path / f"{name}.png")
    features = Features({"image": Image(mode="RGB"), "label": ClassLabel(names=["wren", "robin"])})
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    content = (tmp_path / "a.png").read_bytes()
    items = Dataset.from_dict({"image": [*paths, {"path": None, "bytes": content}], "label": [0, 1, 0]}, features)
    gallery = GalleryIndex.from_embeddings(clustered(3), items.with_format("numpy"), model_id=MODEL)
    gallery.save(tmp_path / "gallery")
    (tmp_path / "b.png").unlink()
    gallery = GalleryIndex.load(tmp_path / "gallery")
    assert gallery.items["image"][:] == [
        {"bytes": None, "path": paths[0]}, {"bytes": None, "path": paths[1]}, {"bytes": content, "path": None}
    ]
    assert gallery.items.features["label"].names == ["wren", "robin"]
    assert gallery.items.features["image"]["path"] == Value("string")
    assert gallery.search(clustered(3)[1:2], 1)[1][0][0]["image"]["path"] == paths[1]
    gallery.add(clustered(3, seed=1), items)
    assert len(gallery) == 6


def test_rerank_is_here_too():
    distances = rerank(clustered(5), clustered(50, seed=1), k1=5, k2=2)
    assert distances.rows(np.arange(5)).shape == (5, 50)
