from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoModel, ViTImageProcessor

from dcal_hf import DCALForImageClassification
from dcal_hf.retrieval import embed_images, model_fingerprint

from helpers import noise_picture


@pytest.fixture
def model(vit_config):
    return DCALForImageClassification.from_backbone(vit_config, num_labels=3, local_query_ratio=0.5).eval()


@pytest.fixture
def processor():
    return ViTImageProcessor(size={"height": 32, "width": 32})


@pytest.fixture
def photographs(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for seed, path in enumerate(paths):
        noise_picture(seed).save(path)
    return [str(path) for path in paths]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 32])
def test_embeddings_are_the_models(model, processor, photographs, batch_size):
    dataset = Dataset.from_dict({"photo": photographs, "label": [0] * 7})
    if batch_size > 1:
        dataset = dataset.cast_column("photo", ImageFeature())
    embeddings = embed_images(
        model.train(), processor, dataset, image_column="photo", batch_size=batch_size, num_workers=batch_size % 2
    )
    images = [Image.open(path) for path in photographs]
    with torch.no_grad():
        expected = model.eval()(**processor(images, return_tensors="pt")).embeddings
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected.numpy(), atol=1e-5)


def test_a_broken_image_is_named_or_skipped(model, processor, photographs, caplog):
    Path(photographs[4]).write_bytes(b"no image")
    dataset = Dataset.from_dict({"image": photographs})
    with pytest.raises(ValueError, match="cannot read image .*4.png"):
        embed_images(model, processor, dataset)
    embeddings = embed_images(model, processor, dataset, batch_size=3, skip_broken=True)
    assert np.isnan(embeddings).all(axis=1).tolist() == [i == 4 for i in range(7)]
    assert "cannot read image" in caplog.text and "4.png" in caplog.text
    kept = [0, 1, 2, 3, 5, 6]
    alone = embed_images(model, processor, dataset.select(kept))
    np.testing.assert_allclose(embeddings[kept], alone, atol=1e-5)


def test_an_empty_data_set_is_rejected(model, processor):
    with pytest.raises(ValueError, match="no images to embed"):
        embed_images(model, processor, Dataset.from_dict({"image": []}))


def test_fingerprint_is_of_the_weights(tmp_path, model):
    name = model_fingerprint(model)
    model.save_pretrained(tmp_path)
    assert model_fingerprint(AutoModel.from_pretrained(tmp_path)) == name
    assert name.startswith("dcal-") and len(name) == len("dcal-") + 16
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert model_fingerprint(model) != name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fingerprint_of_a_checkpoint_in_half_precision_does_not_depend_on_how_it_is_loaded(tmp_path, model, dtype):
    name = model_fingerprint(model)
    model.to(dtype).save_pretrained(tmp_path)
    loaded = [AutoModel.from_pretrained(tmp_path, dtype=precision) for precision in (dtype, torch.float32)]
    assert [next(part.parameters()).dtype for part in loaded] == [dtype, torch.float32]
    assert len({*map(model_fingerprint, loaded)}) == 1 and model_fingerprint(loaded[0]) != name
