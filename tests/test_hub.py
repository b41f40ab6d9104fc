"""Saved models as strangers load them: Auto classes, pipelines, and processes without dcal_hf."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from dcal_hf import DCALForImageClassification, DCALModel
from dcal_hf.encoder_dcal import SEAMS
from dcal_hf.transforms import EvalTransform, fine_grained_processor


def saved_model(folder: Path, config, **kwargs) -> DCALForImageClassification:
    labels = {"id2label": {0: "wren", 1: "robin", 2: "finch"}, "label2id": {"wren": 0, "robin": 1, "finch": 2}}
    model = DCALForImageClassification.from_backbone(config, local_query_ratio=0.3, **labels, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    fine_grained_processor(ViTImageProcessor(), model.config.image_size).save_pretrained(folder)
    return model


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8))


def test_saved_and_loaded_is_the_same_model(tmp_path, backbone_config):
    model = saved_model(tmp_path, backbone_config, num_glca_blocks=2)
    loaded, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is DCALForImageClassification
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixel_values = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(pixel_values).logits, model(pixel_values).logits)
    assert loaded.config.id2label == {0: "wren", 1: "robin", 2: "finch"}


def test_stochastic_depth_comes_back_with_the_checkpoint(tmp_path, vit_config):
    saved_model(tmp_path, vit_config, drop_path_rate=0.5)
    loaded = DCALForImageClassification.from_pretrained(tmp_path)
    rates = [hook.rate for module in loaded.modules() for hook in module._forward_hooks.values()]
    assert rates == [0.25, 0.25, 0.5, 0.5, 0.5, 0.5]  # blocks 2 and 3 of 3, and GLCA


def test_auto_model_gives_the_embeddings(tmp_path, vit_config):
    model = saved_model(tmp_path, vit_config)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is DCALModel
    pixel_values = torch.randn(2, 3, 32, 32)
    embeddings = loaded(pixel_values).embeddings
    assert embeddings.shape == (2, 64)
    assert torch.equal(embeddings, model(pixel_values).embeddings)
    assert torch.equal(loaded(pixel_values).pooler_output, embeddings)


def test_pipeline_shows_the_mean_probability_of_the_branches(tmp_path, vit_config):
    model = saved_model(tmp_path, vit_config)
    classify = pipeline("image-classification", model=str(tmp_path))
    scores = {entry["label"]: entry["score"] for entry in classify(picture())}
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixel_values = torch.stack(EvalTransform(processor)({"image": [picture()], "label": [0]})["pixel_values"])
    output = model(pixel_values)
    expected = (output.sa_logits.softmax(-1) + output.glca_logits.softmax(-1))[0] / 2
    assert [scores[name] for name in ("wren", "robin", "finch")] == pytest.approx(expected.tolist(), abs=1e-5)


def test_feature_extraction_pipeline_gives_the_embeddings(tmp_path, vit_config):
    model = saved_model(tmp_path, vit_config)
    extract = pipeline("image-feature-extraction", model=str(tmp_path), pool=True)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixel_values = torch.stack(EvalTransform(processor)({"image": [picture()], "label": [0]})["pixel_values"])
    assert extract(picture())[0] == pytest.approx(model(pixel_values).embeddings[0].tolist(), abs=1e-5)


STRANGER = """
import sys, json
sys.modules["dcal_hf"] = None   # any import of the package fails
import torch
from transformers import AutoModel, AutoModelForImageClassification
folder, copy = sys.argv[1:]
try:
    AutoModelForImageClassification.from_pretrained(folder)
except ValueError as error:
    refusal = str(error)
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
torch.manual_seed(7)
pixel_values = torch.randn(2, 3, 32, 32)
embeddings = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()(pixel_values).embeddings
model.save_pretrained(copy)
again = AutoModelForImageClassification.from_pretrained(copy, trust_remote_code=True).eval()
print(json.dumps({
    "refusal": refusal, "module": type(model).__module__, "logits": model(pixel_values).logits.tolist(),
    "embeddings": embeddings.tolist(), "again": again(pixel_values).logits.tolist(),
}))
"""


@pytest.mark.parametrize("name", ["vit", "dinov3_vit", "timm_deit"])
def test_a_process_without_the_package_gets_identical_logits(tmp_path, monkeypatch, backbone_configs, name):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = saved_model(tmp_path / "model", backbone_configs[name])
    arguments = [sys.executable, "-c", STRANGER, str(tmp_path / "model"), str(tmp_path / "copy")]
    run = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout[run.stdout.index("{"):])
    torch.manual_seed(7)
    output = model(torch.randn(2, 3, 32, 32))
    assert "trust_remote_code" in answer["refusal"] or "custom code" in answer["refusal"]
    assert answer["module"].startswith("transformers_modules")
    assert answer["logits"] == answer["again"] == output.logits.tolist()
    assert answer["embeddings"] == output.embeddings.tolist()


def test_pretrained_weights_come_with_the_encoder_and_its_labels(tmp_path, vit_config):
    plain = ViTForImageClassification(ViTConfig(**{**vit_config.to_dict(), "num_labels": 4})).eval()
    plain.config.id2label = {0: "a", 1: "b", 2: "c", 3: "d"}
    plain.save_pretrained(tmp_path)
    model = DCALForImageClassification.from_backbone(tmp_path).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.dcal(pixel_values).last_hidden_state, plain.vit(pixel_values).last_hidden_state)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}
    assert DCALForImageClassification.from_backbone(tmp_path, num_labels=7).config.num_labels == 7


def resized_tokens(plain, pixel_values: torch.Tensor) -> torch.Tensor:
    """A plain encoder's tokens for another input size, its positions resampled by its own library."""
    if plain.config.model_type == "timm_wrapper":
        resized = copy.deepcopy(plain)
        resized.timm_model.set_input_size(tuple(pixel_values.shape[-2:]))
        return resized(pixel_values).last_hidden_state
    kwargs = {} if "dinov" in plain.config.model_type else {"interpolate_pos_encoding": True}
    tokens = plain(pixel_values, **kwargs).last_hidden_state
    return plain.post_layernorm(tokens) if plain.config.model_type == "clip_vision_model" else tokens


def test_resized_positions_equal_those_of_the_encoders_library(tmp_path, backbone_config):
    plain = AutoModel.from_config(backbone_config).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain.save_pretrained(tmp_path)
    for image_size in ((48, 64), (16, 24)):
        model = DCALModel.from_backbone(tmp_path, image_size=image_size).eval()
        pixel_values = torch.randn(2, 3, *image_size)
        expected = resized_tokens(plain, pixel_values)
        torch.testing.assert_close(model(pixel_values).last_hidden_state, expected)
        model.save_pretrained(tmp_path / "dcal")
        assert AutoModel.from_pretrained(tmp_path / "dcal").config.grid == (image_size[0] // 8, image_size[1] // 8)


def test_the_image_tower_of_a_clip_checkpoint(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **sizes)
    clip = CLIPModel(CLIPConfig(text_config=CLIPTextConfig(vocab_size=99, **sizes), vision_config=vision)).eval()
    clip.save_pretrained(tmp_path)
    pixel_values = torch.randn(2, 3, 32, 32)
    model = DCALModel.from_backbone(tmp_path).eval()
    expected = clip.vision_model(pixel_values).pooler_output
    torch.testing.assert_close(model(pixel_values).sa_embedding, expected)


def test_glca_starts_from_the_last_block(backbone_config):
    model = DCALModel.from_backbone(backbone_config, num_glca_blocks=2)
    last = SEAMS[backbone_config.model_type].get_blocks(model.backbone)[-1].state_dict()
    for block in model.glca.blocks:
        assert all(torch.equal(value, last[name]) for name, value in block.state_dict().items())


def test_weights_missing_from_a_checkpoint_are_initialised_not_garbage(tmp_path, backbone_config):
    """A checkpoint of SA alone, loaded as full DCAL: GLCA's block and the log-variances are new."""
    saved_model(tmp_path, backbone_config, branches=("sa",))
    config = json.loads((tmp_path / "config.json").read_text())
    config.update(branches=["sa", "glca", "pwca"], inference_branches=["sa", "glca"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, report = DCALForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert "loss_weights.log_vars" in report["missing_keys"]
    assert torch.equal(model.loss_weights.log_vars, torch.zeros(3))
    for name, parameter in model.dcal.glca.named_parameters():
        assert parameter.isfinite().all() and parameter.abs().max() < 2, name
        if name.endswith("lambda1"):
            assert torch.equal(parameter, torch.full_like(parameter, backbone_config.layerscale_value))


def test_a_dcal_checkpoint_is_no_backbone(tmp_path, vit_config):
    saved_model(tmp_path, vit_config)
    with pytest.raises(ValueError, match="is a DCAL checkpoint already: load it with from_pretrained"):
        DCALForImageClassification.from_backbone(tmp_path)


@pytest.mark.parametrize("name", ["vit", "dinov3_vit", "clip_vision_model", "timm_deit"])
def test_compiled_and_exported_models_agree(backbone_configs, name):
    model = DCALForImageClassification.from_backbone(backbone_configs[name], num_labels=3).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    expected = model(pixel_values).logits
    exported = torch.export.export(model, (), {"pixel_values": pixel_values}).module()
    torch.testing.assert_close(exported(pixel_values=pixel_values).logits, expected)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pixel_values=pixel_values).logits, expected)


@pytest.mark.slow
def test_inductor_compiles_the_whole_graph(backbone_config):
    model = DCALForImageClassification.from_backbone(backbone_config, num_labels=3).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(pixel_values=pixel_values).logits, model(pixel_values).logits)


def test_checkpointing_and_autocast_change_nothing_but_precision(backbone_config):
    model = DCALForImageClassification.from_backbone(backbone_config, num_labels=3, drop_path_rate=0.2).train()
    inputs = {"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 0])}
    inputs["pair_index"] = torch.tensor([3, 2, 1, 0])

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model.zero_grad()
        model(**inputs).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected = gradients()
    model.activation_checkpointing_enable()
    recomputed = gradients()
    assert all(torch.equal(recomputed[name], value) for name, value in expected.items())
    model.activation_checkpointing_disable()
    torch.manual_seed(1)
    loss = model(**inputs).loss
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(**inputs)
    assert half.loss.dtype == torch.float32
    torch.testing.assert_close(half.loss, loss, atol=0.02, rtol=0.02)
