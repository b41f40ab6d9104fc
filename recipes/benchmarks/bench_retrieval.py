"""Measures time and memory of retrieval evaluation and re-ranking at MSMT17's size, beside the dense way.

    python recipes/benchmarks/bench_retrieval.py                          # writes recipes/benchmarks/retrieval.md
    python recipes/benchmarks/bench_retrieval.py --scale 0.05 --output small.md

Each case runs in a process of its own: the two that are compared, bare distances and evaluation, in turn and
`--repeats` times, of which the table holds medians; the long ones once. The features are random, one centre per
identity with noise around it. The dense cases are NumPy over whole matrices, as Re-ID projects do it, on
as many of the images as `--dense_memory` of the free memory holds.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness import Figures, arguments, bullets, machine, markdown_table, measure, parse, peak_memory, write_report

from dcal_hf.metrics import QUERIES_PER_CHUNK, distance_metrics, retrieval_metrics
from dcal_hf.retrieval import rerank


NUM_QUERIES, NUM_ITEMS, NUM_IDENTITIES, NUM_CAMERAS, DIM = 11_659, 82_161, 3_060, 15, 768
NOISE = 4.0
K1, K2, LAMBDA = 20, 6, 0.3
# Distances, ranks of type int64, the identities they pick, and whether these match.
DENSE_EVALUATION_BYTES = 4 + 8 + 8 + 4
# Distances, their scaled copy, ranks of type int64 and int32, the encodings and their averages.
DENSE_RERANKING_BYTES = 4 + 4 + 8 + 4 + 4 + 4


@dataclass
class Images:
    """Random features, identities and cameras of queries and gallery, numbers in MSMT17's proportions."""

    features: tuple[torch.Tensor, torch.Tensor]
    ids: tuple[np.ndarray, np.ndarray]
    cameras: tuple[np.ndarray, np.ndarray]

    @classmethod
    def draw(cls, scale: float) -> "Images":
        generator, numbers = torch.Generator().manual_seed(0), np.random.default_rng(0)
        identities = max(2, round(NUM_IDENTITIES * scale))
        centres = torch.randn(identities, DIM, generator=generator)
        sizes = [max(1, round(count * scale)) for count in (NUM_QUERIES, NUM_ITEMS)]
        ids = tuple(numbers.integers(0, identities, size) for size in sizes)
        features = tuple(torch.randn(size, DIM, generator=generator).mul_(NOISE) for size in sizes)
        for part, part_ids in zip(features, ids, strict=True):
            for row, identity in zip(part, part_ids, strict=True):
                row += centres[identity]
        return cls(features, ids, tuple(numbers.integers(0, NUM_CAMERAS, size) for size in sizes))


def bare_distances(images: Images) -> None:
    """Squared Euclidean distances, thrown away, in chunks of the size that was fastest."""
    query, gallery = images.features
    query_norms, gallery_norms = (torch.einsum("nd,nd->n", part, part) for part in images.features)
    for row in range(0, len(query), 512):
        for column in range(0, len(gallery), 4096):
            rows, columns = slice(row, row + 512), slice(column, column + 4096)
            products = torch.addmm(gallery_norms[columns], query[rows], gallery[columns].T, alpha=-2)
            products += query_norms[rows, None]


def evaluate(images: Images) -> None:
    retrieval_metrics(*images.features, *images.ids, *images.cameras)


def rerank_only(images: Images) -> None:
    rerank(*images.features, k1=K1, k2=K2, lambda_value=LAMBDA)


def rerank_and_evaluate(images: Images) -> None:
    distance_metrics(rerank(*images.features, k1=K1, k2=K2, lambda_value=LAMBDA), *images.ids, *images.cameras)


def dense_distances(left: torch.Tensor, right: torch.Tensor) -> np.ndarray:
    left, right = left.numpy(), right.numpy()
    distances = left @ right.T
    distances *= -2
    distances += np.square(left).sum(1)[:, None]
    distances += np.square(right).sum(1)
    return distances


def dense_evaluate(images: Images) -> None:
    """The whole matrix, sorted, with the protocol applied to each sorted row."""
    order = dense_distances(*images.features).argsort(axis=1)
    matches = (images.ids[1][order] == images.ids[0][:, None]).astype(np.int32)
    precisions = []
    for row, hits, identity, camera in zip(order, matches, images.ids[0], images.cameras[0], strict=True):
        hits = hits[(images.ids[1][row] != identity) | (images.cameras[1][row] != camera)]
        if hits.any():
            precision = hits.cumsum() / np.arange(1, len(hits) + 1)
            precisions.append(precision[hits > 0].mean())
    np.mean(precisions)


def dense_rerank(images: Images) -> None:
    """The formula over matrices of all pairs."""
    features = torch.nn.functional.normalize(torch.cat(images.features))
    distances = dense_distances(features, features)
    distances = distances / distances.max(axis=1, keepdims=True)
    order = distances.argsort(axis=1).astype(np.int32)
    encoding = np.zeros_like(distances)
    for i in range(len(order)):
        base = reciprocal(order, i, K1)
        parts = [base]
        for j in base:
            candidates = reciprocal(order, j, round(K1 / 2))
            if 3 * np.isin(candidates, base).sum() > 2 * len(candidates):
                parts.append(candidates)
        members = np.unique(np.concatenate(parts))
        weights = np.exp(-distances[i, members])
        encoding[i, members] = weights / weights.sum()
    averages = np.empty_like(encoding)
    for i in range(len(order)):
        averages[i] = encoding[order[i, :K2]].mean(axis=0)
    del encoding
    count = len(images.ids[0])
    for i in range(count):
        held = np.flatnonzero(averages[i])
        minima = np.minimum(averages[count:, held], averages[i, held]).sum(axis=1)
        distances[i, count:] *= LAMBDA
        distances[i, count:] += (1 - LAMBDA) * (1 - minima / (2 - minima))


def reciprocal(order: np.ndarray, i: int, k: int) -> np.ndarray:
    forward = order[i, :k + 1]
    return forward[(order[forward, :k + 1] == i).any(axis=1)]


# What runs, and its name in the report.
CASES: dict[str, tuple[Callable[[Images], None], str]] = {
    "bare": (bare_distances, "distances alone, in chunks"),
    "evaluate": (evaluate, "`retrieval_metrics`"),
    "rerank": (rerank_only, "`rerank`"),
    "rerank_evaluate": (rerank_and_evaluate, "`rerank`, then `distance_metrics`"),
    "dense_evaluate": (dense_evaluate, "dense evaluation"),
    "dense_rerank": (dense_rerank, "dense re-ranking"),
}
COMPARED = ("bare", "evaluate")


def run_case(args: argparse.Namespace) -> Figures:
    """Runs a case in this process; returns seconds, and bytes above the features and the loaded libraries."""
    images = Images.draw(args.scale)
    before, start = peak_memory(), time.perf_counter()
    CASES[args.case][0](images)
    return {"seconds": time.perf_counter() - start, "bytes": peak_memory() - before}


def row(name: str, figures: Figures, scale: float) -> list[str]:
    queries, items = (max(1, round(count * scale)) for count in (NUM_QUERIES, NUM_ITEMS))
    return [CASES[name][1], f"{queries:,} x {items:,}", f"{figures['seconds']:.1f}", f"{figures['bytes'] / 1e9:.2f}"]


def notes(results: dict[str, Figures], scale: float) -> list[str]:
    """Limits, floors, and what the dense way would take."""
    bare, evaluation, reranking = (results[name] for name in ("bare", "evaluate", "rerank"))
    products = 2 * NUM_QUERIES * NUM_ITEMS * DIM * scale**2
    speed = products / bare["seconds"]
    images = (NUM_QUERIES + NUM_ITEMS) * scale
    searches = 2 * 2 * images**2 * DIM
    return [
        f"Evaluation takes {evaluation['seconds'] / bare['seconds']:.2f} times the bare distances (limit: 2) and "
        f"{evaluation['bytes'] / 1e9:.2f} GB (limit: 2).",
        f"Re-ranking takes {reranking['bytes'] / 1e9:.2f} GB (limit: 8).",
        f"Floors: the bare distances are {products / 1e12:.2f} TFLOP, here at {speed / 1e9:.0f} GFLOP/s; the two "
        f"exact searches of re-ranking are {searches / 1e12:.2f} TFLOP, {searches / speed:.0f} s at that speed. "
        f"Evaluation holds two chunks of rows, {2 * QUERIES_PER_CHUNK * 4 * NUM_ITEMS * scale / 1e9:.2f} GB, and a "
        f"hundredth of the negative distances, {4 * NUM_QUERIES * NUM_ITEMS * scale**2 / 100 / 1e9:.2f} GB, up to "
        f"four times over; re-ranking two copies of the normalised features, {2 * 4 * DIM * images / 1e9:.2f} GB, "
        f"and faiss's index of as many, {4 * DIM * images / 1e9:.2f} GB.",
        f"The dense way would take {DENSE_EVALUATION_BYTES * NUM_QUERIES * NUM_ITEMS * scale**2 / 1e9:.1f} GB to "
        f"evaluate and {DENSE_RERANKING_BYTES * images**2 / 1e9:.1f} GB to re-rank at the full size; it was run at "
        "the largest size that fits.",
    ]


def dense_scale(scale: float, pairs: float, bytes_per_pair: int, memory: float) -> float:
    """The largest scale, up to `scale`, at which that many pairs at scale 1 fit into the memory."""
    return min(scale, (memory / (pairs * bytes_per_pair)) ** 0.5)


def main() -> None:
    parser = arguments(__doc__, Path(__file__).with_name("retrieval.md"), CASES, repeats=5)
    parser.add_argument("--scale", type=float, default=1.0, help="share of MSMT17's images")
    parser.add_argument("--dense_memory", type=float, default=0.6, help="share of the free memory for the dense way")
    args = parse(parser, run_case)
    free = args.dense_memory * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    scales = dict.fromkeys(CASES, args.scale) | {
        "dense_evaluate": dense_scale(args.scale, NUM_QUERIES * NUM_ITEMS, DENSE_EVALUATION_BYTES, free),
        "dense_rerank": dense_scale(args.scale, (NUM_QUERIES + NUM_ITEMS) ** 2, DENSE_RERANKING_BYTES, free),
    }
    options = {name: ["--scale", str(scale)] for name, scale in scales.items()}
    results = measure({name: options.pop(name) for name in COMPARED}, args.repeats)
    results |= measure(options)
    write_report(
        args.output,
        "Retrieval evaluation and re-ranking",
        f"Random features of {DIM} float32 numbers, MSMT17's test set times {args.scale:g}; of the first two rows "
        f"medians of {args.repeats} processes, of the others one each. Memory is the peak above the features and the "
        "loaded libraries.",
        machine(("faiss",)),
        markdown_table(
            ("case", "queries x gallery", "seconds", "GB"),
            [row(name, figures, scales[name]) for name, figures in results.items()],
        ),
        bullets(notes(results, args.scale)),
    )


if __name__ == "__main__":
    main()
