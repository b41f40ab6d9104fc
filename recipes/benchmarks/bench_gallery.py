"""Measures a gallery of a million embeddings: building, saving, loading and searching an IVF-PQ index.

    python recipes/benchmarks/bench_gallery.py                                  # writes recipes/benchmarks/gallery.md
    python recipes/benchmarks/bench_gallery.py --size 20000 --output small.md

The embeddings are random, in clusters, and of few degrees of freedom, as a network's are (independent noise in every
dimension has no near neighbours to find): a point is its cluster's centre plus noise, both normal in 64 dimensions,
mapped to 768 by one random matrix, plus a little noise in each of these. There are 100 points per cluster. They are
made a chunk at a time, the same again each time, and time for making them is not counted. Each case runs in a process
of its own.

The index is `PCA128,IVF4096,PQ64np` at a million; `--factory IVF4096,PQ64np` is one without PCA, for example. "np"
leaves out polysemous training, which takes minutes and helps only who searches with `ht`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
from harness import Figures, arguments, bullets, machine, markdown_table, measure, parse, peak_memory, write_report

from dcal_hf.retrieval import GalleryIndex


DIM, LATENT_DIM, POINTS_PER_CLUSTER = 768, 64, 100
LATENT_NOISE, NOISE = 0.5, 0.05
NUM_QUERIES, K = 1_000, 10
ROWS_PER_CHUNK = 1 << 16
TRAINING_POINTS_PER_LIST = 64
PROBES = (1, 8, 32, 128)
MODEL_ID = "random"


def lists(size: int) -> int:
    """The power of 2 next to four times the root of the size, as faiss's guidelines have it."""
    return 1 << round(np.log2(4 * size**0.5))


def default_factory(size: int) -> str:
    return f"PCA128,IVF{lists(size)},PQ64np"


def draw(count: int, clusters: int, seed: list[int]) -> np.ndarray:
    """Points `(count, DIM)`, float32; the seed draws points, not centres."""
    fixed, numbers = np.random.default_rng(0), np.random.default_rng(seed)
    mapping = fixed.standard_normal((LATENT_DIM, DIM), dtype=np.float32) / LATENT_DIM**0.5
    centres = fixed.standard_normal((clusters, LATENT_DIM), dtype=np.float32)
    latent = numbers.standard_normal((count, LATENT_DIM), dtype=np.float32) * LATENT_NOISE
    latent += centres[numbers.integers(0, clusters, count)]
    points = numbers.standard_normal((count, DIM), dtype=np.float32) * NOISE
    points += latent @ mapping
    return points


def queries(size: int) -> np.ndarray:
    return draw(NUM_QUERIES, max(1, size // POINTS_PER_CLUSTER), [1])


def chunks(size: int, first: int) -> Iterator[tuple[int, np.ndarray]]:
    """The embeddings with the row each part starts at: `first` rows, then chunks."""
    starts = [0, *range(first, size, ROWS_PER_CHUNK), size]
    for start, stop in zip(starts, starts[1:]):
        yield start, draw(stop - start, max(1, size // POINTS_PER_CLUSTER), [2, start])


def training_size(size: int) -> int:
    return min(size, TRAINING_POINTS_PER_LIST * lists(size))


def build(size: int, factory: str, folder: Path) -> Figures:
    """Begins the gallery with what it trains on, adds the others, saves it."""
    seconds, gallery, before = 0.0, None, 0
    for start, points in chunks(size, training_size(size)):
        items = {"number": np.arange(start, start + len(points))}
        before = before or peak_memory()
        begin = time.perf_counter()
        if gallery is None:
            gallery = GalleryIndex.from_embeddings(points, items, model_id=MODEL_ID, factory=factory)
        else:
            gallery.add(points, items)
        seconds += time.perf_counter() - begin
    added = peak_memory() - before
    begin = time.perf_counter()
    gallery.save(folder / "gallery")
    files = [path.stat().st_size for path in (folder / "gallery").rglob("*") if path.is_file()]
    return {
        "seconds": seconds, "bytes": added, "save_seconds": time.perf_counter() - begin, "file_bytes": sum(files),
    }


def exact(size: int, factory: str, folder: Path) -> Figures:
    """The true neighbours by faiss's own exhaustive search, chunk by chunk."""
    asked, seconds = normalised(queries(size)), 0.0
    scores, rows = np.empty((NUM_QUERIES, 0), np.float32), np.empty((NUM_QUERIES, 0), np.int64)
    for start, points in chunks(size, training_size(size)):
        points = normalised(points)
        begin = time.perf_counter()
        part = faiss.knn(asked, points, min(K, len(points)), faiss.METRIC_INNER_PRODUCT)
        scores, rows = np.hstack([scores, part[0]]), np.hstack([rows, part[1] + start])
        best = (-scores).argsort(axis=1)[:, :K]
        scores, rows = (np.take_along_axis(array, best, axis=1) for array in (scores, rows))
        seconds += time.perf_counter() - begin
    np.save(folder / "exact.npy", rows)
    return {"seconds": seconds}


def normalised(points: np.ndarray) -> np.ndarray:
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def search(size: int, factory: str, folder: Path) -> Figures:
    """Loads the gallery, and searches it with all queries at once, and one at a time."""
    asked, expected = queries(size), np.load(folder / "exact.npy")
    before, begin = peak_memory(), time.perf_counter()
    gallery = GalleryIndex.load(folder / "gallery", MODEL_ID, DIM)
    figures = {"load_seconds": time.perf_counter() - begin}
    gallery.search_rows(asked, K)
    for probes in PROBES:
        gallery.set_search_parameters(nprobe=probes)
        begin = time.perf_counter()
        found = gallery.search_rows(asked, K)[1]
        figures[f"seconds_{probes}"] = time.perf_counter() - begin
        begin = time.perf_counter()
        for query in asked[:100, None]:
            gallery.search_rows(query, K)
        figures[f"one_{probes}"] = (time.perf_counter() - begin) / 100
        hits = (found[:, :, None] == expected[:, None]).any(axis=2)
        figures[f"recall_{probes}"] = hits.mean()
    return figures | {"bytes": peak_memory() - before}


CASES: dict[str, Callable[[int, str, Path], Figures]] = {"build": build, "exact": exact, "search": search}


def run_case(args: argparse.Namespace) -> Figures:
    return CASES[args.case](args.size, args.factory or default_factory(args.size), args.folder)


def settings(size: int, factory: str) -> str:
    """What was measured."""
    return (
        f"`{factory}` over {DIM} float32 numbers each, cosine, trained on {training_size(size):,}. "
        f"The embeddings are random: {max(1, size // POINTS_PER_CLUSTER):,} clusters; centres with standard deviation "
        f"1, points around them with {LATENT_NOISE} in {LATENT_DIM} dimensions, mapped to {DIM} by a random matrix, "
        f"plus noise of {NOISE} in each. They come in chunks of {ROWS_PER_CHUNK:,}, which are thrown away; making "
        "them is not counted. Memory is the peak above the loaded libraries and the first chunk."
    )


def step_rows(building: Figures, searching: Figures) -> list[list[str]]:
    load_memory = f"{searching['bytes'] / 1e9:.2f}"
    return [
        ["build: train and add", f"{building['seconds']:.1f}", f"{building['bytes'] / 1e9:.2f}"],
        [f"save, {building['file_bytes'] / 1e9:.3f} GB of files", f"{building['save_seconds']:.2f}", ""],
        ["load, checksums included, and search", f"{searching['load_seconds']:.2f}", load_memory],
    ]


def search_rows(searching: Figures, exhaustive: float) -> list[list[str]]:
    rows = [
        [
            f"nprobe {probes}",
            f"{searching[f'recall_{probes}']:.3f}",
            f"{NUM_QUERIES / searching[f'seconds_{probes}']:,.0f}",
            f"{1e3 * searching[f'one_{probes}']:.2f}",
        ]
        for probes in PROBES
    ]
    return [*rows, ["exact (`faiss.knn` on the embeddings)", "1", f"{NUM_QUERIES / exhaustive:,.0f}", ""]]


def notes(size: int, exhaustive: float) -> list[str]:
    products = 2 * NUM_QUERIES * DIM * size
    return [
        f"The embeddings themselves are {4 * DIM * size / 1e9:.2f} GB, what the index is trained on "
        f"{4 * DIM * training_size(size) / 1e9:.2f} GB.",
        f"Floor: the exact search is {products / 1e12:.2f} TFLOP, here at {products / exhaustive / 1e9:.0f} GFLOP/s.",
    ]


def main() -> None:
    parser = arguments(__doc__, Path(__file__).with_name("gallery.md"), CASES, repeats=1)
    parser.add_argument("--size", type=int, default=1_000_000, help="number of embeddings, at least 10,000")
    parser.add_argument("--factory", help="faiss factory string")
    parser.add_argument("--folder", type=Path, help="where the cases leave files for one another")
    args = parse(parser, run_case)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(dict.fromkeys(CASES, ["--folder", folder]), args.repeats)
    exhaustive = results["exact"]["seconds"]
    write_report(
        args.output,
        f"A gallery of {args.size:,} embeddings",
        settings(args.size, args.factory or default_factory(args.size)),
        machine(("faiss",)),
        markdown_table(("step", "seconds", "GB of memory"), step_rows(results["build"], results["search"])),
        f"{NUM_QUERIES:,} queries drawn like the embeddings; recall@{K} is the share of the {K} true neighbours among "
        f"the {K} found.",
        markdown_table(
            ("search", f"recall@{K}", "queries per second, all at once", "ms for one alone"),
            search_rows(results["search"], exhaustive),
        ),
        bullets(notes(args.size, exhaustive)),
    )


if __name__ == "__main__":
    main()
