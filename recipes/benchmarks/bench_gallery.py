"""Measures a gallery of a million embeddings: building, saving, loading and searching an IVF-PQ index.

    python recipes/benchmarks/bench_gallery.py                                  # writes recipes/benchmarks/gallery.md
    python recipes/benchmarks/bench_gallery.py --size 20000 --output small.md

The embeddings are random. Like those of a network, they form clusters and have few degrees of freedom (independent
noise in every dimension has no near neighbours). A point is the centre of its cluster plus noise, both normal in
64 dimensions, mapped to 768 by a random matrix, plus a little noise in each dimension. A cluster has 100 points. They
are generated in chunks, deterministically, and the time for this is not included. Each case runs in its own process.

The index of a million embeddings is `PCA128,IVF4096,PQ64np`; `--factory IVF4096,PQ64np` has no PCA, for example. "np"
skips polysemous training, which takes minutes and is only useful for searches with `ht`.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from harness import Figures, peak_memory, run, table, timed

from dcal_hf.retrieval import GalleryIndex


DIM, LATENT_DIM, POINTS_PER_CLUSTER = 768, 64, 100
LATENT_NOISE, NOISE = 0.5, 0.05
NUM_QUERIES, K = 1_000, 10
ROWS_PER_CHUNK = 1 << 16
TRAINING_POINTS_PER_LIST = 64
PROBES = (1, 8, 32, 128)
MODEL_ID = "random"


def lists(size: int) -> int:
    """The power of 2 nearest to four times the square root of the size, as faiss's guidelines recommend."""
    return 1 << round(np.log2(4 * size**0.5))


def clusters(size: int) -> int:
    return max(1, size // POINTS_PER_CLUSTER)


def training_size(size: int) -> int:
    return min(size, TRAINING_POINTS_PER_LIST * lists(size))


def draw(count: int, size: int, seed: list[int]) -> np.ndarray:
    """Points `(count, DIM)`, float32, of a gallery of that size; the seed determines points, not centres."""
    fixed, numbers = np.random.default_rng(0), np.random.default_rng(seed)
    mapping = fixed.standard_normal((LATENT_DIM, DIM), dtype=np.float32) / LATENT_DIM**0.5
    centres = fixed.standard_normal((clusters(size), LATENT_DIM), dtype=np.float32)
    latent = numbers.standard_normal((count, LATENT_DIM), dtype=np.float32) * LATENT_NOISE
    latent += centres[numbers.integers(0, clusters(size), count)]
    points = numbers.standard_normal((count, DIM), dtype=np.float32) * NOISE
    points += latent @ mapping
    return points


def queries(size: int) -> np.ndarray:
    return draw(NUM_QUERIES, size, [1])


def chunks(size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields parts of the embeddings with their first row: those that the index trains on, then chunks."""
    starts = [0, *range(training_size(size), size, ROWS_PER_CHUNK), size]
    for start, stop in zip(starts, starts[1:]):
        yield start, draw(stop - start, size, [2, start])


def build(size: int, factory: str, folder: Path) -> Figures:
    """Builds the gallery from the training embeddings, adds the others, and saves it."""
    total, gallery, before = 0.0, None, 0
    for start, points in chunks(size):
        items = {"number": np.arange(start, start + len(points))}
        before = before or peak_memory()
        if gallery is None:
            create = partial(GalleryIndex.from_embeddings, points, items, model_id=MODEL_ID, factory=factory)
            gallery, seconds = timed(create)
        else:
            _, seconds = timed(partial(gallery.add, points, items))
        total += seconds
    added = peak_memory() - before
    _, seconds = timed(partial(gallery.save, folder / "gallery"))
    files = [path.stat().st_size for path in (folder / "gallery").rglob("*") if path.is_file()]
    return {"seconds": total, "bytes": added, "save_seconds": seconds, "file_bytes": sum(files)}


def exact(size: int, factory: str, folder: Path) -> Figures:
    """The true neighbours by faiss's exhaustive search, in chunks."""
    normalised_queries, total = normalised(queries(size)), 0.0
    scores, rows = np.empty((NUM_QUERIES, 0), np.float32), np.empty((NUM_QUERIES, 0), np.int64)

    def search_chunk(start: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = faiss.knn(normalised_queries, points, min(K, len(points)), faiss.METRIC_INNER_PRODUCT)
        both = np.hstack([scores, found[0]]), np.hstack([rows, found[1] + start])
        best = (-both[0]).argsort(axis=1)[:, :K]
        return tuple(np.take_along_axis(array, best, axis=1) for array in both)

    for start, points in chunks(size):
        (scores, rows), seconds = timed(partial(search_chunk, start, normalised(points)))
        total += seconds
    np.save(folder / "exact.npy", rows)
    return {"seconds": total}


def normalised(points: np.ndarray) -> np.ndarray:
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def search(size: int, factory: str, folder: Path) -> Figures:
    """Loads the gallery, and searches it with all queries at once and with single queries."""
    points, expected, before = queries(size), np.load(folder / "exact.npy"), peak_memory()
    gallery, seconds = timed(partial(GalleryIndex.load, folder / "gallery", MODEL_ID, DIM))
    figures = {"load_seconds": seconds}
    gallery.search_rows(points, K)
    for probes in PROBES:
        gallery.set_search_parameters(nprobe=probes)
        (_, found), figures[f"seconds_{probes}"] = timed(partial(gallery.search_rows, points, K))
        _, seconds = timed(lambda: [gallery.search_rows(query, K) for query in points[:100, None]])
        figures[f"one_{probes}"] = seconds / 100
        figures[f"recall_{probes}"] = (found[:, :, None] == expected[:, None]).any(axis=2).mean()
    return figures | {"bytes": peak_memory() - before}


CASES: dict[str, Callable[[int, str, Path], Figures]] = {"build": build, "exact": exact, "search": search}


def run_case(args: argparse.Namespace) -> Figures:
    return CASES[args.case](args.size, args.factory.format(lists=lists(args.size)), args.folder)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=1_000_000, help="number of embeddings, at least 10,000")
    parser.add_argument("--factory", default="PCA128,IVF{lists},PQ64np", help="faiss factory string")


def report(args: argparse.Namespace, results: dict[str, Figures]) -> list[str]:
    size, (building, exhaustive, searching) = args.size, results.values()
    saving = f"save, {building['file_bytes'] / 1e9:.3f} GB of files"
    steps = {
        "build: train and add": (building["seconds"], building["bytes"]),
        saving: (building["save_seconds"], None),
        "load, checksums included, and search": (searching["load_seconds"], searching["bytes"]),
    }
    searches = {
        f"nprobe {probes}": [searching[f"{name}_{probes}"] for name in ("recall", "seconds", "one")]
        for probes in PROBES
    }
    products = 2 * NUM_QUERIES * DIM * size
    return [
        f"A gallery of {size:,} embeddings",
        f"`{args.factory.format(lists=lists(size))}` over {DIM} float32 numbers each, cosine, trained on "
        f"{training_size(size):,}. The embeddings are random: {clusters(size):,} clusters; centres with standard "
        f"deviation 1, points around them with {LATENT_NOISE} in {LATENT_DIM} dimensions, mapped to {DIM} by a random "
        f"matrix, plus noise of {NOISE} in each. They come in chunks of {ROWS_PER_CHUNK:,}, which are "
        "discarded; the time to generate them is not included. Memory is the peak above the loaded libraries and the "
        "first chunk.",
        table(
            {"step": step, "seconds": f"{seconds:.3g}", "GB of memory": "" if peak is None else f"{peak / 1e9:.2f}"}
            for step, (seconds, peak) in steps.items()
        ),
        f"{NUM_QUERIES:,} queries are sampled like the embeddings; recall@{K} is the fraction of the {K} true "
        f"neighbours among the {K} found.",
        table(
            {
                "search": name,
                f"recall@{K}": f"{recall:.3f}",
                "queries per second, all at once": f"{NUM_QUERIES / seconds:,.0f}",
                "ms for one alone": f"{1e3 * one:.2f}",
            }
            for name, (recall, seconds, one) in searches.items()
        ),
        f"The exact search, `faiss.knn` on the embeddings, answers {NUM_QUERIES / exhaustive['seconds']:,.0f} queries "
        f"per second: {products / 1e12:.2f} TFLOP, here at {products / exhaustive['seconds'] / 1e9:.0f} GFLOP/s. The "
        f"embeddings take {4 * DIM * size / 1e9:.2f} GB, and those that the index is trained on "
        f"{4 * DIM * training_size(size) / 1e9:.2f} GB.",
    ]


def main() -> None:
    run(__doc__, "gallery", CASES, run_case, report, packages=("faiss",), add_arguments=add_arguments)


if __name__ == "__main__":
    main()
