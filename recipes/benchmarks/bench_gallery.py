"""Measures a gallery of a million embeddings: building, saving, loading and searching an IVF-PQ index.

    python recipes/benchmarks/bench_gallery.py                                  # writes recipes/benchmarks/gallery.md
    python recipes/benchmarks/bench_gallery.py --size 20000 --output small.md

The embeddings are random. Like those of a network, they form clusters and have few degrees of freedom (independent
noise in every dimension has no near neighbours). They are generated in chunks, deterministically, and the time for
this is not included. Each case runs in its own process.

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
    """Points `(count, DIM)`, float32, of a gallery of that size; the seed determines points, not centres.

    A point is the centre of its cluster plus noise, both normal in `LATENT_DIM` dimensions, mapped to `DIM` by a
    random matrix, plus a little noise in each dimension.
    """
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
    parts = ((points, {"number": np.arange(start, start + len(points))}) for start, points in chunks(size))
    first, before = next(parts), peak_memory()
    gallery, total = timed(partial(GalleryIndex.from_embeddings, *first, model_id=MODEL_ID, factory=factory))
    del first
    for part in parts:
        total += timed(partial(gallery.add, *part))[1]
    added = peak_memory() - before
    _, seconds = timed(partial(gallery.save, folder / "gallery"))
    files = [path.stat().st_size for path in (folder / "gallery").rglob("*") if path.is_file()]
    return {"seconds": total, "bytes": added, "save_seconds": seconds, "file_bytes": sum(files)}


def exact(size: int, factory: str, folder: Path) -> Figures:
    """The true neighbours by faiss's exhaustive search, in chunks."""
    points, nearest, total = queries(size), faiss.ResultHeap(NUM_QUERIES, K, keep_max=True), 0.0
    faiss.normalize_L2(points)
    for start, chunk in chunks(size):
        faiss.normalize_L2(chunk)
        (scores, rows), seconds = timed(partial(faiss.knn, points, chunk, K, faiss.METRIC_INNER_PRODUCT))
        nearest.add_result(scores, rows + start)
        total += seconds
    nearest.finalize()
    np.save(folder / "exact.npy", nearest.I)
    return {"seconds": total}


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


def step_row(step: str, seconds: float, peak: float | None = None) -> dict[str, str]:
    return {"step": step, "seconds": f"{seconds:.3g}", "GB of memory": "" if peak is None else f"{peak / 1e9:.2f}"}


def search_row(search: str, recall: float, seconds: float, one: float | None = None) -> dict[str, str]:
    return {
        "search": search,
        f"recall@{K}": f"{recall:.3f}",
        "queries per second, all at once": f"{NUM_QUERIES / seconds:,.0f}",
        "ms for one alone": "" if one is None else f"{1e3 * one:.2f}",
    }


def report(args: argparse.Namespace, results: dict[str, Figures]) -> list[str]:
    size, (building, exhaustive, searching) = args.size, results.values()
    searches = (
        search_row(f"nprobe {probes}", *(searching[f"{name}_{probes}"] for name in ("recall", "seconds", "one")))
        for probes in PROBES
    )
    return [
        f"A gallery of {size:,} embeddings",
        f"`{args.factory.format(lists=lists(size))}` over {DIM} float32 numbers each, cosine, trained on "
        f"{training_size(size):,}; {NUM_QUERIES:,} queries.",
        table([
            step_row("build: train and add", building["seconds"], building["bytes"]),
            step_row(f"save, {building['file_bytes'] / 1e9:.3f} GB of files", building["save_seconds"]),
            step_row("load, checksums included, and search", searching["load_seconds"], searching["bytes"]),
        ]),
        table([*searches, search_row("exact, `faiss.knn`", 1, exhaustive["seconds"])]),
    ]


def main() -> None:
    run(__doc__, "gallery", CASES, run_case, report, packages=("faiss",), add_arguments=add_arguments)


if __name__ == "__main__":
    main()
