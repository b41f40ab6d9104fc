"""Measures time and memory of retrieval evaluation and re-ranking at MSMT17's size, compared with dense matrices.

    python recipes/benchmarks/bench_retrieval.py                          # writes recipes/benchmarks/retrieval.md
    python recipes/benchmarks/bench_retrieval.py --scale 0.05 --output small.md

Each case runs in its own process. Distances and evaluation, which are compared, alternate `--repeats` times, and the
table contains medians; the long cases run once. The features are random: one centre per identity, and noise. The dense
cases use NumPy on full matrices, as is common in Re-ID projects, with as many images as fit into `--dense_memory` of
the free memory.
"""

import argparse
import math
import os
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from harness import Figures, peak_memory, run, table, timed

from dcal_hf.metrics import QUERIES_PER_CHUNK, distance_metrics, retrieval_metrics
from dcal_hf.retrieval import rerank


NUM_QUERIES, NUM_ITEMS, NUM_IDENTITIES, NUM_CAMERAS, DIM = 11_659, 82_161, 3_060, 15, 768
NOISE = 4.0
K1, K2, LAMBDA = 20, 6, 0.3
# Per pair of a query and an item: distances, ranks of type int64, the identities they pick, and whether these match.
DENSE_EVALUATION_BYTES = 4 + 8 + 8 + 4
# Per pair of images: distances, their scaled copy, ranks of type int64 and int32, the encodings and their averages.
DENSE_RERANKING_BYTES = 4 + 4 + 8 + 4 + 4 + 4


def sizes(scale: float) -> list[int]:
    """Numbers of queries and of gallery items."""
    return [max(1, round(count * scale)) for count in (NUM_QUERIES, NUM_ITEMS)]


def draw(scale: float) -> list[torch.Tensor | np.ndarray]:
    """Random features, identities and cameras of queries and gallery: the arguments of `retrieval_metrics`."""
    generator, numbers = torch.Generator().manual_seed(0), np.random.default_rng(0)
    identities = max(2, round(NUM_IDENTITIES * scale))
    centres = torch.randn(identities, DIM, generator=generator)
    ids = [numbers.integers(0, identities, size) for size in sizes(scale)]
    features = [torch.randn(size, DIM, generator=generator).mul_(NOISE) for size in sizes(scale)]
    for part, part_ids in zip(features, ids, strict=True):
        for row, identity in zip(part, part_ids, strict=True):
            row += centres[identity]
    return [*features, *ids, *(numbers.integers(0, NUM_CAMERAS, size) for size in sizes(scale))]


def bare_distances(query: torch.Tensor, gallery: torch.Tensor, *columns: np.ndarray) -> None:
    """Squared Euclidean distances, computed and discarded in chunks of the fastest size."""
    query_norms, gallery_norms = (torch.einsum("nd,nd->n", part, part) for part in (query, gallery))
    for row in range(0, len(query), 512):
        for column in range(0, len(gallery), 4096):
            rows, columns = slice(row, row + 512), slice(column, column + 4096)
            products = torch.addmm(gallery_norms[columns], query[rows], gallery[columns].T, alpha=-2)
            products += query_norms[rows, None]


def dense_distances(left: torch.Tensor, right: torch.Tensor) -> np.ndarray:
    left, right = left.numpy(), right.numpy()
    distances = left @ right.T
    distances *= -2
    distances += np.square(left).sum(1)[:, None]
    distances += np.square(right).sum(1)
    return distances


def dense_evaluate(query: torch.Tensor, gallery: torch.Tensor, *columns: np.ndarray) -> None:
    """Sorts the full matrix, and applies the protocol to each sorted row."""
    query_ids, gallery_ids, query_cameras, gallery_cameras = columns
    order = dense_distances(query, gallery).argsort(axis=1)
    matches = (gallery_ids[order] == query_ids[:, None]).astype(np.int32)
    precisions = []
    for row, hits, identity, camera in zip(order, matches, query_ids, query_cameras, strict=True):
        hits = hits[(gallery_ids[row] != identity) | (gallery_cameras[row] != camera)]
        if hits.any():
            precision = hits.cumsum() / np.arange(1, len(hits) + 1)
            precisions.append(precision[hits > 0].mean())
    np.mean(precisions)


def dense_rerank(query: torch.Tensor, gallery: torch.Tensor, *columns: np.ndarray) -> None:
    """Re-ranking with matrices of all pairs."""
    features = torch.nn.functional.normalize(torch.cat([query, gallery]))
    distances = dense_distances(features, features)
    distances = distances / distances.max(axis=1, keepdims=True)
    order = distances.argsort(axis=1).astype(np.int32)
    encoding = np.zeros_like(distances)
    for i in range(len(order)):
        base = reciprocal(order, i, K1)
        candidates = [reciprocal(order, j, round(K1 / 2)) for j in base]
        added = [part for part in candidates if 3 * np.isin(part, base).sum() > 2 * len(part)]
        members = np.unique(np.concatenate([base, *added]))
        weights = np.exp(-distances[i, members])
        encoding[i, members] = weights / weights.sum()
    averages = np.empty_like(encoding)
    for i in range(len(order)):
        averages[i] = encoding[order[i, :K2]].mean(axis=0)
    del encoding
    count = len(query)
    for i in range(count):
        held = np.flatnonzero(averages[i])
        minima = np.minimum(averages[count:, held], averages[i, held]).sum(axis=1)
        distances[i, count:] *= LAMBDA
        distances[i, count:] += (1 - LAMBDA) * (1 - minima / (2 - minima))


def reciprocal(order: np.ndarray, i: int, k: int) -> np.ndarray:
    forward = order[i, :k + 1]
    return forward[(order[forward, :k + 1] == i).any(axis=1)]


reranked = partial(rerank, k1=K1, k2=K2, lambda_value=LAMBDA)
# The function of each row of the report.
CASES: dict[str, Callable[..., object]] = {
    "distances only, in chunks": bare_distances,
    "`retrieval_metrics`": retrieval_metrics,
    "`rerank`": lambda query, gallery, *columns: reranked(query, gallery),
    "`rerank`, then `distance_metrics`": (
        lambda query, gallery, *columns: distance_metrics(reranked(query, gallery), *columns)
    ),
    "dense evaluation": dense_evaluate,
    "dense re-ranking": dense_rerank,
}
COMPARED = tuple(CASES)[:2]
# For dense cases: the number of pairs at the full size, and bytes per pair.
DENSE = {
    "dense evaluation": (NUM_QUERIES * NUM_ITEMS, DENSE_EVALUATION_BYTES),
    "dense re-ranking": ((NUM_QUERIES + NUM_ITEMS) ** 2, DENSE_RERANKING_BYTES),
}


def run_case(args: argparse.Namespace) -> Figures:
    """Seconds, bytes above the features and the loaded libraries, and the scale, limited by memory."""
    scale = args.scale
    if args.case in DENSE:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        scale = min(scale, (args.dense_memory * free / math.prod(DENSE[args.case])) ** 0.5)
    images, before = draw(scale), peak_memory()
    _, seconds = timed(partial(CASES[args.case], *images))
    return {"seconds": seconds, "bytes": peak_memory() - before, "scale": scale}


def row(name: str, figures: Figures) -> dict[str, str]:
    return {
        "case": name,
        "queries x gallery": "{:,} x {:,}".format(*sizes(figures["scale"])),
        "seconds": f"{figures['seconds']:.1f}",
        "GB": f"{figures['bytes'] / 1e9:.2f}",
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of MSMT17's images")
    parser.add_argument("--dense_memory", type=float, default=0.6, help="fraction of free memory for dense matrices")


def report(args: argparse.Namespace, results: dict[str, Figures]) -> list[str]:
    scale, (bare, evaluation) = args.scale, (results[name]["seconds"] for name in COMPARED)
    pairs, images = NUM_QUERIES * NUM_ITEMS * scale**2, (NUM_QUERIES + NUM_ITEMS) * scale
    products, searches = 2 * DIM * pairs, 2 * 2 * DIM * images**2
    evaluation_gb, reranking_gb = (math.prod(dense) * scale**2 / 1e9 for dense in DENSE.values())
    return [
        "Retrieval evaluation and re-ranking",
        f"Random features of {DIM} float32 numbers, MSMT17's test set times {scale:g}; medians of {args.repeats} "
        f"processes for the first two rows, one process for the others. Memory is the peak above the features and the "
        "loaded libraries.",
        table(row(name, figures) for name, figures in results.items()),
        f"Evaluation takes {evaluation / bare:.2f} times as long as the distances only (limit: 2). The memory limits "
        "are 2 GB for evaluation and 8 GB for re-ranking.",
        f"Lower bounds: the distances are {products / 1e12:.2f} TFLOP, here at {products / bare / 1e9:.0f} GFLOP/s; "
        f"the two exact searches of re-ranking are {searches / 1e12:.2f} TFLOP, {searches / products * bare:.0f} s at "
        f"that speed. Evaluation stores two chunks of rows ({8 * QUERIES_PER_CHUNK * NUM_ITEMS * scale / 1e9:.2f} GB) "
        f"and up to four copies of a hundredth of the negative distances ({4 * pairs / 100 / 1e9:.2f} GB each). "
        f"Re-ranking stores two copies of the normalised features ({8 * DIM * images / 1e9:.2f} GB) and the faiss "
        f"index ({4 * DIM * images / 1e9:.2f} GB).",
        f"Dense matrices would take {evaluation_gb:.1f} GB for evaluation and {reranking_gb:.1f} GB for re-ranking at "
        "the full size; the dense rows were measured at the largest size that fits.",
    ]


def main() -> None:
    run(
        __doc__, "retrieval", CASES, run_case, report, packages=("faiss",), add_arguments=add_arguments, repeats=5,
        once=[name for name in CASES if name not in COMPARED],
    )


if __name__ == "__main__":
    main()
