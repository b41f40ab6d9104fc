"""`ranked_lists.png` of a re-identification model."""

from functools import partial
from pathlib import Path

import datasets
import numpy as np

from dcal_hf import DCALReIDTrainer
from dcal_hf.data import open_image
from dcal_hf.metrics import FeatureDistances, RetrievalProtocol
from dcal_hf.training import protocol_columns


def save_ranked_lists(trainer: DCALReIDTrainer, num_queries: int, num_matches: int, max_pixels: int) -> None:
    """Writes `ranked_lists.png`: random queries and their best matches, before any re-ranking."""
    from dcal_hf.visualization import ranked_list, save_figure

    read = partial(open_image, max_pixels=max_pixels)
    sets = {name: part.with_format(None) for name, part in trainer.eval_dataset.items()}
    protocol = RetrievalProtocol(**protocol_columns(**sets))
    rng = np.random.default_rng(trainer.args.seed)
    chosen = np.sort(rng.choice(len(sets["query"]), min(num_queries, len(sets["query"])), replace=False))
    rows = FeatureDistances(*trainer.branch_parts()[""]).rows(chosen)
    ranked = [protocol.counted(query) for query in chosen]
    best = [items[np.argsort(row[items], kind="stable")[:num_matches]] for items, row in zip(ranked, rows)]
    ids = protocol.gallery_ids
    figure = ranked_list(
        [read(image) for image in sets["query"][chosen]["image"]],
        [[read(image) for image in sets["gallery"][items]["image"]] for items in best],
        [np.sqrt(row[items].clip(min=0)) for items, row in zip(best, rows)],
        correct=[(ids[items] == protocol.query_ids[query]).tolist() for query, items in zip(chosen, best)],
        titles=[[identity_name(sets["gallery"], ids[item]) for item in items] for items in best],
    )
    save_figure(figure, Path(trainer.args.output_dir, "ranked_lists.png"))


def identity_name(dataset: datasets.Dataset, identity: int) -> str:
    feature = dataset.features["identity"]
    return feature.int2str(int(identity)) if isinstance(feature, datasets.ClassLabel) else str(identity)
