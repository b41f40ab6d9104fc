
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from dcal_hf.retrieval import GalleryIndex, rerank

from galleries import MODEL, D, N, clustered, exact, make, recall, table


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_flat_search_is_exact(metric):
    queries = clustered(30, seed=1)
    expected_scores, expected_rows = exact(queries, clustered(), metric, 7)
    gallery = make(metric=metric)
    for given in (queries, torch.tensor(queries, dtype=torch.float64, requires_grad=True)):
        scores, items = gallery.search(given, k=7)
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


def test_fewer_matches_than_requested():
    gallery = make("IVF32,Flat", search_parameters={"nprobe": 1})
    scores, rows = gallery.search_rows(clustered(3, seed=1), N)
    assert scores.shape == rows.shape == (3, N)
    assert ((rows == -1) == np.isnan(scores)).all() and (rows[:, 0] >= 0).all() and (rows[:, -1] == -1).all()
    assert [len(found) for found in gallery.search(clustered(3, seed=1), N)[1]] == (rows >= 0).sum(axis=1).tolist()
    assert make(count=3).search(clustered(2, seed=1), 10)[0].shape == (2, 3)


def test_training_on_a_sample():
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
    # Rows of the table still match the vectors.
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


def test_an_index_that_cannot_remove():
    gallery = make("HNSW8", count=50)
    with pytest.raises(ValueError, match="'HNSW8' cannot remove items: build a new one"):
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
def test_mismatching_items_are_not_added(embeddings, items, message):
    gallery = make(count=10)
    with pytest.raises(ValueError, match=message):
        gallery.add(embeddings, items)
    assert len(gallery) == len(gallery.items) == gallery.index.ntotal == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factory": "IVF64,Flat", "count": 5}, r"cannot be trained on 5 embeddings \(Number of training points"),
        ({"factory": "PQ4", "count": 100}, "clusters .256.*give more embeddings, or .* such as 'Flat'"),
        ({"factory": "NSG8", "count": 50}, r"'NSG8' cannot add 50 embeddings to 0 \(NNDescent.build .*\): give more"),
        ({"factory": "Nonsense"}, "cannot create an index 'Nonsense' of 16 dimensions: could not parse index string"),
        ({"factory": "PQ5"}, r"The dimension of the vector \(d\) should be a multiple"),
        ({"metric": "manhattan"}, "must be \"cosine\" or \"euclidean\", got 'manhattan'"),
        ({"search_parameters": {"nprobe": 4}}, "'Flat' has no search parameter 'nprobe'"),
    ],
)
def test_invalid_galleries(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_invalid_queries():
    gallery = make(count=5)
    with pytest.raises(ValueError, match="k=0"):
        gallery.search(clustered(1), k=0)
    with pytest.raises(ValueError, match=r"shape \(N, 16\)"):
        gallery.search(np.ones((1, 8), np.float32))


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


def test_files_that_a_saved_gallery_cannot_have_are_refused():
    """Loading such a gallery would fail: it would take them for those of a manipulated folder."""
    items = Dataset.from_dict({"views": [["a.png", "b.png"]] * 2}).cast_column("views", List(Image()))
    with pytest.raises(ValueError, match="column 'views' has files in lists, or other than images: leave it"):
        GalleryIndex.from_embeddings(np.eye(2), items, model_id=MODEL)


def test_an_index_that_needs_more_images_is_named_in_reranking():
    with pytest.raises(ValueError, match=r"'IVF64,Flat' cannot search 25 embeddings .* \(Number of training"):
        rerank(clustered(5), clustered(20), k1=5, k2=2, index="IVF64,Flat")


def test_rerank_is_exported():
    distances = rerank(clustered(5), clustered(50, seed=1), k1=5, k2=2)
    assert distances.rows(np.arange(5)).shape == (5, 50)
