"""`attention.jpg` of a classifier."""

from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from temperature import main_scores
from transformers.trainer_utils import PredictionOutput

from dcal_hf import DCALTrainer
from dcal_hf.data import open_image
from dcal_hf.models import top_patches


# Longest side of a photograph in attention.jpg; a cell of the figure shows fewer pixels.
PICTURE_PIXELS = 1024


def save_attention(trainer: DCALTrainer, output: PredictionOutput | None, count: int, max_pixels: int) -> None:
    """Writes `attention.jpg`: photographs of the evaluated split, mistakes first, and the attention on them."""
    from dcal_hf.visualization import attention_figure, save_figure

    chosen = trainer.eval_dataset.select(choose_images(output, len(trainer.eval_dataset), count, trainer.args.seed))
    processor, model, names = trainer.processing_class, trainer.model.eval(), chosen.features["label"].names
    batch, records = chosen[:], chosen.with_format(None)["image"]
    with torch.inference_mode():
        pixel_values = torch.stack(batch["pixel_values"]).to(model.device, model.dtype)
        drawn = model(pixel_values, output_rollout=True)
    selected = drawn.local_query_indices
    if selected is None:
        selected = top_patches(drawn.rollout, model.config.num_local_queries)
    probabilities, predicted = drawn.logits.float().softmax(dim=-1).max(dim=-1)
    titles = [
        f"{Path(record['path'] or '').name}   true: {names[label]}   predicted: {names[best]} ({p:.2f})".strip()
        for record, label, best, p in zip(records, batch["labels"], predicted, probabilities)
    ]
    photographs = [open_image(image, max_pixels) for image in records]
    for photograph in photographs:
        photograph.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    correct = [int(best) == int(label) for best, label in zip(predicted, batch["labels"])]
    figure = attention_figure(photographs, drawn.rollout, model.config.grid, selected, titles, processor, correct)
    save_figure(figure, Path(trainer.args.output_dir, "attention.jpg"))


def choose_images(output: PredictionOutput | None, num_images: int, count: int, seed: int) -> list[int]:
    """Indices of `count` images: up to half of them are the most confident mistakes, which come first.

    The others are sampled at random, and all are without predictions. With too few others, there are more mistakes.
    """
    order = np.random.default_rng(seed).permutation(num_images)
    if output is None:
        return order[:count].tolist()
    scores = main_scores(output)
    is_wrong = scores.argmax(axis=1) != output.label_ids
    by_confidence = np.argsort(-softmax(scores, axis=1).max(axis=1), kind="stable")
    mistakes, others = by_confidence[is_wrong[by_confidence]], order[~is_wrong[order]]
    mistakes = mistakes[:max(-(-count // 2), count - len(others))]
    return [*mistakes.tolist(), *others.tolist()][:count]
