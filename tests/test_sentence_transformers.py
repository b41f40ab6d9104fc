"""Checkpoints in sentence-transformers: equal embeddings, without code from the checkpoint."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, ViTImageProcessor

from dcal_hf import DCALConfig, DCALForImageClassification, DCALForReID
from dcal_hf.transforms import EvalTransform, fine_grained_processor, reid_processor

from helpers import add_noise, noise_picture


@pytest.fixture(scope="module", params=["reid", "classification"])
def checkpoint(request, tmp_path_factory, backbone_configs):
    """A model, and the folder it is saved in."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    is_reid = request.param == "reid"
    model_class, prepare = (
        (DCALForReID, reid_processor) if is_reid else (DCALForImageClassification, fine_grained_processor)
    )
    neck = {"neck_feature": "after"} if is_reid else {}
    model = add_noise(model_class.from_backbone(backbone_configs["vit"], num_labels=3, **neck), 0.1)
    model.save_pretrained(folder)
    prepare(ViTImageProcessor(), (32, 32)).save_pretrained(folder)
    return folder, model


def test_embeddings_are_equal_bit_for_bit(checkpoint):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder, model = checkpoint
    pictures = [noise_picture(seed) for seed in range(3)]
    loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)
    vectors = loaded.encode(pictures)
    processor = AutoImageProcessor.from_pretrained(folder)
    pixel_values = torch.stack(EvalTransform(processor)({"image": pictures})["pixel_values"])
    with torch.inference_mode():
        expected = model(pixel_values).embeddings
    assert vectors.shape == (3, 64) and np.array_equal(vectors, expected.numpy())
    similarities = loaded.similarity(vectors, vectors)
    unit = torch.nn.functional.normalize(expected)
    torch.testing.assert_close(similarities, unit @ unit.T)


def test_the_files_are_saved_with_a_model_only(checkpoint, tmp_path):
    folder, _ = checkpoint
    (module,) = json.loads((folder / "modules.json").read_text())
    assert module["type"].endswith(".Transformer") and module["path"] == ""
    assert json.loads((folder / "sentence_bert_config.json").read_text())["modality_config"].keys() == {"image"}
    DCALConfig().save_pretrained(tmp_path)
    assert (tmp_path / "config.json").exists() and not (tmp_path / "modules.json").exists()
