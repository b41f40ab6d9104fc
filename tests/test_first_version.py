"""Checkpoints of the first version, saved in `checkpoints` with their outputs, give the same outputs.

They are tiny ViTs with spread weights, made by version 0.1.0 at commit ef37dd3, whose `pair_index=[1, 0]` was the pair
of today. `answers.safetensors` holds its outputs for `IMAGES`, with labels 0 and 1, in evaluation mode.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from dcal_hf import DCALForImageClassification, DCALForReID


CHECKPOINTS = Path(__file__).with_name("checkpoints")
IMAGES = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).sin().view(2, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "model_class"), [("classification", DCALForImageClassification), ("reid", DCALForReID)]
)
def test_outputs_of_first_version_checkpoints(name, model_class):
    folder = CHECKPOINTS / f"first_version_{name}"
    answers = load_file(folder / "answers.safetensors")
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    labels = torch.tensor([0, 1])
    output = model.eval()(IMAGES, labels, torch.tensor([[0, 1]]))
    for key, value in answers.items():
        torch.testing.assert_close(output[key], value, atol=1e-5, rtol=1e-4)
    embeddings = AutoModel.from_pretrained(folder).eval()(IMAGES).embeddings
    torch.testing.assert_close(embeddings, answers["embeddings"], atol=1e-5, rtol=1e-4)
