"""Writes `ranked_lists.jpg` of a re-identification model."""

from pathlib import Path

import datasets
import numpy as np

from dcal_hf import DCALReIDTrainer
from dcal_hf.data import protocol_columns, read_images
from dcal_hf.metrics import FeatureDistances, RetrievalProtocol


def save_ranked_lists(
    trainer: DCALReIDTrainer, num_queries: int, num_matches: int, max_pixels: int, has_distractors: bool
) -> None:
    """Writes `ranked_lists.jpg`: random queries and their best matches, before any re-ranking.

    With `has_distractors`, identity 0 is that of Market-1501's distractors; in other data sets it is an individual.
    """
    from dcal_hf.visualization import ranked_list, save_figure

    sets = {name: part.with_format(None) for name, part in trainer.eval_dataset.items()}
    protocol = RetrievalProtocol(**protocol_columns(**sets))
    rng = np.random.default_rng(trainer.args.seed)
    chosen = np.sort(rng.choice(len(sets["query"]), min(num_queries, len(sets["query"])), replace=False))
    rows = FeatureDistances(*trainer.branch_parts()[""]).rows(chosen)
    ranked = [protocol.counted(query) for query in chosen]
    ranked = [items[np.argsort(row[items], kind="stable")] for items, row in zip(ranked, rows)]
    best, ids = [items[:num_matches] for items in ranked], protocol.gallery_ids
    is_match = [ids[items] == protocol.query_ids[query] for query, items in zip(chosen, ranked)]
    figure = ranked_list(
        [*read_images(sets["query"][chosen], max_pixels)],
        [[*read_images(sets["gallery"][items], max_pixels)] for items in best],
        [np.sqrt(row[items].clip(min=0)) for items, row in zip(best, rows)],
        correct=[matches[:num_matches].tolist() for matches in is_match],
        titles=[[identity_name(sets["gallery"], ids[item], has_distractors) for item in items] for items in best],
        query_title=[
            "\n".join([identity_name(sets["query"], protocol.query_ids[query]), *first_match(matches, num_matches)])
            for query, matches in zip(chosen, is_match)
        ],
        score_name="distance",
    )
    save_figure(figure, Path(trainer.args.output_dir, "ranked_lists.jpg"))


def first_match(is_match: np.ndarray, num_shown: int) -> list[str]:
    """Tells where in the ranked gallery the first match is, unless it is shown."""
    if not is_match.any():
        return ["no match in the gallery"]
    rank = int(is_match.argmax()) + 1
    return [] if rank <= num_shown else [f"first match: rank {rank}"]


def identity_name(dataset: datasets.Dataset, identity: int, has_distractors: bool = False) -> str:
    if has_distractors and identity == 0:
        return "distractor"
    feature = dataset.features["identity"]
    return feature.int2str(int(identity)) if isinstance(feature, datasets.ClassLabel) else str(identity)
