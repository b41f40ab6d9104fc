"""Which photographs `attention.jpg` shows."""

import numpy as np
import pytest
from transformers.trainer_utils import PredictionOutput


@pytest.mark.parametrize(
    "count, mistakes", [(2, [4]), (4, [4, 1]), (6, [4, 1, 2]), (9, [4, 1, 2])], ids=["2", "4", "6", "all"]
)
def test_up_to_half_of_the_photographs_are_the_most_confident_mistakes(import_recipe, count, mistakes):
    choose_images = import_recipe("attention_examples").choose_images
    logits = np.array([[1, 0], [0, 2], [0, 1], [1, 0], [0, 3], [1, 0], [1, 0], [1, 0]])
    output = PredictionOutput((logits, logits), np.zeros(8, dtype=int), {})
    chosen = choose_images(output, 8, count, seed=0)
    assert chosen[:len(mistakes)] == mistakes and len(set(chosen)) == len(chosen) == min(count, 8)
    assert not {1, 2, 4} & set(chosen[len(mistakes):])
    without = [choose_images(None, 8, count, seed=seed) for seed in range(2)]
    assert all(len(set(some)) == min(count, 8) for some in without) and without[0] != without[1]
    # If no prediction is right, more mistakes are shown.
    assert choose_images(PredictionOutput(-logits, np.zeros(8, dtype=int), {}), 8, 5, 0)[0] in (0, 3, 5, 6, 7)
    assert len(choose_images(PredictionOutput(logits, np.full(8, 2), {}), 8, 5, 0)) == 5
