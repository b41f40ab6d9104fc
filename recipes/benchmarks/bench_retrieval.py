"""Measures time and memory of retrieval evaluation and re-ranking at MSMT17's size.

    python recipes/benchmarks/bench_retrieval.py                          # writes recipes/benchmarks/retrieval.md
    python recipes/benchmarks/bench_retrieval.py --scale 0.05 --output small.md

Each case runs in its own process. Distances and evaluation, which are compared, alternate `--repeats` times, and the
table contains medians; the long cases run once. The features are random: one centre per identity, and noise.
"""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from harness import Figures, peak_memory, run, table, timed

from dcal_hf.metrics import distance_metrics, retrieval_metrics
from dcal_hf.retrieval import rerank


NUM_QUERIES, NUM_ITEMS, NUM_IDENTITIES, NUM_CAMERAS, DIM = 11_659, 82_161, 3_060, 15, 768
NOISE = 4.0


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


# The function of each row of the report.
CASES: dict[str, Callable[..., object]] = {
    "distances only, in chunks": bare_distances,
    "`retrieval_metrics`": retrieval_metrics,
    "`rerank`": lambda query, gallery, *columns: rerank(query, gallery),
    "`rerank`, then `distance_metrics`": (
        lambda query, gallery, *columns: distance_metrics(rerank(query, gallery), *columns)
    ),
}
COMPARED = tuple(CASES)[:2]


def run_case(args: argparse.Namespace) -> Figures:
    """Seconds, and bytes above the features and the loaded libraries."""
    images, before = draw(args.scale), peak_memory()
    _, seconds = timed(partial(CASES[args.case], *images))
    return {"seconds": seconds, "bytes": peak_memory() - before}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of MSMT17's images")


def report(args: argparse.Namespace, results: dict[str, Figures]) -> list[str]:
    bare, evaluation = (results[name]["seconds"] for name in COMPARED)
    return [
        "Retrieval evaluation and re-ranking",
        f"Random features of {DIM} float32 numbers, MSMT17's test set times {args.scale:g}; medians of {args.repeats} "
        "processes for the first two rows, one process for the others.",
        table(
            {
                "case": name,
                "queries x gallery": "{:,} x {:,}".format(*sizes(args.scale)),
                "seconds": f"{figures['seconds']:.1f}",
                "GB": f"{figures['bytes'] / 1e9:.2f}",
            }
            for name, figures in results.items()
        ),
        f"Evaluation takes {evaluation / bare:.2f} times as long as the distances only.",
    ]


def main() -> None:
    run(
        __doc__, "retrieval", CASES, run_case, report, packages=("faiss",), add_arguments=add_arguments, repeats=5,
        once=[name for name in CASES if name not in COMPARED],
    )


if __name__ == "__main__":
    main()
