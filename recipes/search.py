# /// script
# dependencies = ["dcal_hf[pictures]"]
# ///
"""Searches a gallery created by recipes/embed.py: prints a table, and writes matches.csv and ranked_list.jpg.

    python recipes/search.py --model_name_or_path out --gallery_dir gallery --images a.jpg b.jpg --output_dir answer

To search for a part of an image, x y width height in pixels:

    python recipes/search.py --model_name_or_path out --gallery_dir gallery --images a.jpg --output_dir answer \
        --bbox 40 20 300 200

To search more of a compressed gallery than by default (slower, finds more):

    python recipes/search.py --model_name_or_path out --gallery_dir gallery --images a.jpg --output_dir answer \
        --search_parameters '{"nprobe": 128}'

Queries without an item nearer than a threshold, a distance or the one that recipes/verify.py has calibrated, are
probably new individuals. Its false-accept rate is that of one pair: a query meets every item of the gallery.

    python recipes/search.py --model_name_or_path out --gallery_dir gallery --images a.jpg --output_dir answer \
        --threshold calibrated
"""

if __name__ == "__main__":
    from cli import run_script

    # Imports this file as a module, unless only its help is asked for, because the imports below take seconds.
    raise SystemExit(run_script(__file__))

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from arguments import json_option, parse_arguments, require_at_least
from common import set_up_logging
from embed import BBOX_HELP, CheckpointArguments, image_parts
from gallery import describe
from loading import load_checkpoint
from predict import find_images
from transformers import PreTrainedModel
from verify import load_threshold

from dcal_hf.data import open_image
from dcal_hf.files import save_table
from dcal_hf.retrieval import GalleryIndex, embed_images, model_fingerprint


@dataclass
class SearchArguments:
    """Gallery, query images and output."""

    gallery_dir: str = field(metadata={"help": "Folder of the gallery."})
    images: list[str] = field(metadata={"help": "Query images or folders of query images."})
    output_dir: str = field(metadata={"help": "Folder for matches.csv and ranked_list.jpg."})
    bbox: list[float] | None = field(default=None, metadata={"help": BBOX_HELP})
    top_k: int = field(default=10, metadata={"help": "Number of items to find for each image."})
    search_parameters: str = field(
        default="{}",
        metadata={"help": "Search parameters of the index as JSON, e.g. '{\"nprobe\": 16}'; by default those saved."},
    )
    threshold: str | None = field(
        default=None,
        metadata={"help": "Distance from which on there is no match, or: calibrated (see recipes/verify.py)."},
    )
    matches_in_picture: int = field(
        default=5, metadata={"help": "Matches in ranked_list.jpg; 0 writes no picture and needs no matplotlib."}
    )

    def __post_init__(self):
        require_at_least(1, self, "top_k")
        require_at_least(0, self, "matches_in_picture")
        self.index_parameters = json_option("search_parameters", self.search_parameters, '{"nprobe": 16}')


ARGUMENTS = (SearchArguments, CheckpointArguments)


@dataclass
class Match:
    """A gallery item found by a query."""

    # Euclidean, of the embeddings; see `GalleryIndex.distances`.
    distance: float
    row: int
    image: dict | str
    # The path of the image, if it has one, and the other columns of the item.
    description: list[Any]
    # The part of the image that was embedded; None for all of it.
    bbox: list[float] | None = None


def main() -> None:
    search_args, checkpoint_args = parse_arguments(ARGUMENTS)
    set_up_logging(logging.WARNING)
    model, processor = load_checkpoint(checkpoint_args)
    gallery = GalleryIndex.load(search_args.gallery_dir, model_fingerprint(model))
    gallery.set_search_parameters(**search_args.index_parameters)
    threshold = read_threshold(search_args.threshold, checkpoint_args, model, gallery)
    queries = find_images(search_args.images)
    images = image_parts(queries, search_args.bbox)
    embeddings = embed_images(model, processor, images, **checkpoint_args.reader_kwargs)
    results = search(gallery, embeddings, search_args.top_k)
    columns = ["image", *(name for name in gallery.items.column_names if name != "image")]
    output_dir, num_shown = Path(search_args.output_dir), search_args.matches_in_picture
    report(queries, results, columns, threshold, output_dir)
    if num_shown > 0:
        shown = [matches[:num_shown] for matches in results]
        parts = images["bbox"] if search_args.bbox is not None else [None] * len(queries)
        save_picture(queries, parts, shown, output_dir, checkpoint_args.max_pixels)


def read_threshold(
    given: str | None, checkpoint_args: CheckpointArguments, model: PreTrainedModel, gallery: GalleryIndex
) -> float | None:
    """The distance that `--threshold` means."""
    if given is None:
        return None
    if given == "calibrated":
        if not has_calibrated_scale(gallery, model):
            raise ValueError(
                "The calibrated threshold is a distance of the model's own embeddings, and the gallery compares them "
                "at length 1: embed the gallery again, with --metric euclidean."
            )
        return load_threshold(checkpoint_args, model).threshold
    try:
        return float(given)
    except ValueError as error:
        raise ValueError(f"--threshold is a distance, or calibrated, not {given!r}.") from error


def has_calibrated_scale(gallery: GalleryIndex, model: PreTrainedModel) -> bool:
    """Whether distances in the gallery are those of the model's own embeddings, which thresholds are calibrated on."""
    return gallery.metric == "euclidean" or model.config.normalize_embeddings


def search(gallery: GalleryIndex, embeddings: np.ndarray, top_k: int) -> list[list[Match]]:
    """The matches of each query, best first. An approximate index may find fewer than `top_k`."""
    results = []
    for scores, rows in zip(*gallery.search_rows(embeddings, top_k), strict=True):
        items = gallery.items.select(rows[rows >= 0]).to_list()
        results.append([
            Match(distance, row, item["image"], describe(item, gallery.items.features), item.get("bbox"))
            for distance, row, item in zip(gallery.distances(scores), rows, items)
        ])
    return results


def report(
    queries: list[str], results: list[list[Match]], columns: list[str], threshold: float | None, output_dir: Path
) -> None:
    """Prints the matches of each query, and writes `matches.csv`; with a threshold, also whether it is the same."""
    header = ["query", "rank", "distance", *(["same"] if threshold is not None else []), "row", *columns]
    table = []
    for query, matches in zip(queries, results, strict=True):
        print(f"\n{query}\n{'rank':>6}  {'distance':>8}  {'row':>8}  {', '.join(columns)}")
        for rank, match in enumerate(matches, start=1):
            print(f"{rank:>6}  {match.distance:>8.4f}  {match.row:>8}  {', '.join(map(str, match.description))}")
            same = [] if threshold is None else [bool(match.distance < threshold)]
            table.append([query, rank, f"{match.distance:.4f}", *same, match.row, *match.description])
        if threshold is not None and not any(match.distance < threshold for match in matches):
            print(f"Probably a new individual: nothing is nearer than {threshold:.4f}.")
    print(f"\n{save_table(header, table, output_dir / 'matches.csv')}")


def save_picture(
    queries: list[str],
    parts: Sequence[list[float] | None],
    results: list[list[Match]],
    output_dir: Path,
    max_pixels: int,
) -> None:
    """Writes `ranked_list.jpg`, with the best matches beside each query, or the part of it that was searched."""
    from dcal_hf.visualization import ranked_list, save_figure

    figure = ranked_list(
        [open_image(query, max_pixels, bbox) for query, bbox in zip(queries, parts, strict=True)],
        [[open_image(match.image, max_pixels, match.bbox) for match in matches] for matches in results],
        [[match.distance for match in matches] for matches in results],
        titles=[[caption(match) for match in matches] for matches in results],
        query_title=[Path(query).name for query in queries],
        score_name="distance",
    )
    save_figure(figure, output_dir / "ranked_list.jpg")


def caption(match: Match) -> str:
    path, *others = match.description
    return "\n".join(map(str, [Path(path).name, *others]))
