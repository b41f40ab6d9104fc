"""Loading saved models: Auto classes, pipelines, and processes without dcal_hf."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import resample_abs_pos_embed
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from dcal_hf import DCALForImageClassification, DCALForReID, DCALModel
from dcal_hf.model_card import ModelCardFacts, write_model_card
from dcal_hf.transforms import EvalTransform, fine_grained_processor

from helpers import add_noise, branches_for, is_cait


def saved_model(folder: Path, config, **kwargs) -> DCALForImageClassification:
    labels = {"id2label": {0: "wren", 1: "robin", 2: "finch"}, "label2id": {"wren": 0, "robin": 1, "finch": 2}}
    kwargs = {"local_query_ratio": 0.3, **labels, **branches_for(config), **kwargs}
    model = add_noise(DCALForImageClassification.from_backbone(config, **kwargs), 0.1)
    model.save_pretrained(folder)
    fine_grained_processor(ViTImageProcessor(), model.config.image_size).save_pretrained(folder)
    return model


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8))


def test_save_and_load(tmp_path, any_backbone_config):
    model = saved_model(tmp_path, any_backbone_config, num_glca_blocks=2)
    loaded, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is DCALForImageClassification
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixel_values = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(pixel_values).logits, model(pixel_values).logits)
    assert loaded.config.id2label == {0: "wren", 1: "robin", 2: "finch"}


def test_stochastic_depth_is_restored_with_the_checkpoint(tmp_path, vit_config):
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


def test_pipeline_gives_the_mean_probability_of_the_branches(tmp_path, vit_config):
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
import contextlib, io, json, pathlib, sys
sys.modules["dcal_hf"] = None   # any import of the package fails
sys.modules["timm"] = None   # and of timm, until a timm encoder is loaded
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.utils import is_timm_available
answers = {}
for folder in sys.argv[1:]:
    name = pathlib.Path(folder).name
    if name.startswith("timm") and sys.modules["timm"] is None:
        del sys.modules["timm"]
        is_timm_available.cache_clear()
    auto_class = AutoModel if name == "reid" else AutoModelForImageClassification
    try:
        auto_class.from_pretrained(folder)
    except ValueError as error:
        refusal = str(error)
    model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
    torch.manual_seed(7)
    pixel_values = torch.randn(2, 3, 32, 32)
    embeddings = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()(pixel_values).embeddings
    model.save_pretrained(folder + "_copy")
    again = auto_class.from_pretrained(folder + "_copy", trust_remote_code=True).eval()
    key = "embeddings" if name == "reid" else "logits"
    with contextlib.redirect_stdout(io.StringIO()) as card:
        if name != "reid":
            exec(open(folder + "/README.md").read().split("```python\\n")[1].split("```")[0])
    answers[name] = {
        "card": card.getvalue(),
        "refusal": refusal, "module": type(model).__module__, "embeddings": embeddings.tolist(),
        "output": getattr(model(pixel_values), key).tolist(), "again": getattr(again(pixel_values), key).tolist(),
    }
answers["unsafe"] = {}
for name, config in json.loads(pathlib.Path("unsafe.json").read_text()).items():
    pathlib.Path("timm_deit", "config.json").write_text(json.dumps(config))
    for auto_class in (AutoConfig, AutoModelForImageClassification):
        try:
            auto_class.from_pretrained("timm_deit", trust_remote_code=True)
        except ValueError as error:
            answers["unsafe"].setdefault(name, []).append(str(error))
print(json.dumps(answers))
"""
# Encoders of timm are last.
STRANGERS = ("vit", "dinov3_vit", "swin", "reid", "timm_deit", "timm_cait")
# Changes of a timm encoder's configuration with which timm would read another file or URL than the checkpoint's.
UNSAFE = {
    "checkpoint_path": {"model_args": {"checkpoint_path": "weights.pth"}},
    "pretrained_cfg": {"model_args": {"pretrained_cfg": {"file": "weights.pth"}}},
    "pretrained_cfg_overlay": {"model_args": {"pretrained_cfg_overlay": {"url": "http://localhost/weights.pth"}}},
    "local-dir:weights": {"architecture": "local-dir:weights"},
    "hf-hub:someone/weights": {"architecture": "hf-hub:someone/weights"},
}


@pytest.fixture(scope="module")
def strangers(tmp_path_factory, backbone_configs) -> tuple[Path, dict[str, PreTrainedModel]]:
    """A folder of saved models with their model cards and an image, and the models."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("strangers")
    models = {name: saved_model(root / name, backbone_configs[name]) for name in STRANGERS if name != "reid"}
    metrics = {"accuracy": 0.5, "top5_accuracy": 0.5, "class_mean_accuracy": 0.5}
    for name in models:
        # In this folder, the name works like that of a repository on the Hub.
        write_model_card(root / name, ModelCardFacts(name, "birds", metrics, {}, {}, branches={"SA": ""}))
    picture().save(root / "image.jpg")
    models["reid"] = add_noise(DCALForReID.from_backbone(backbone_configs["vit"], num_labels=3), 0.1)
    models["reid"].save_pretrained(root / "reid")
    (root / "unsafe.json").write_text(json.dumps(unsafe_configurations(root / "timm_deit")))
    return root, models


def unsafe_configurations(folder: Path) -> dict[str, dict]:
    """The configuration of a checkpoint with each change of `UNSAFE`, also without the sizes, which timm tells."""
    safe = json.loads((folder / "config.json").read_text())
    encoder = safe["backbone_config"]
    short = {name: encoder[name] for name in ("model_type", "architecture")}
    return {
        name + kind: {**safe, "backbone_config": {**fields, **changes}}
        for kind, fields in (("", encoder), (", no sizes", short))
        for name, changes in UNSAFE.items()
    }


@pytest.fixture(scope="module")
def answers(strangers) -> dict[str, dict]:
    """The outputs of a process without dcal_hf (and without timm, unless the encoder is timm's)."""
    folder, _ = strangers
    arguments = [sys.executable, "-c", STRANGER, *(str(folder / name) for name in STRANGERS)]
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules")}
    run = subprocess.run(
        arguments, capture_output=True, text=True, cwd=folder, env=environment, stdin=subprocess.DEVNULL
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout[run.stdout.index("{"):])


@pytest.mark.parametrize("name", STRANGERS)
def test_outputs_without_the_package_are_identical(strangers, answers, name):
    (_, models), answer = strangers, answers[name]
    torch.manual_seed(7)
    output = models[name](torch.randn(2, 3, 32, 32))
    assert "trust_remote_code" in answer["refusal"] or "custom code" in answer["refusal"]
    assert answer["module"].startswith("transformers_modules")
    expected = output.embeddings if name == "reid" else output.logits
    assert answer["output"] == answer["again"] == expected.tolist()
    assert answer["embeddings"] == output.embeddings.tolist()
    labels = () if name == "reid" else ("wren", "robin", "finch")
    assert all(label in answer["card"] for label in labels)


@pytest.mark.parametrize("kind", ["", ", no sizes"])
@pytest.mark.parametrize("name", UNSAFE)
def test_the_code_in_a_checkpoint_refuses_to_read_other_files(answers, name, kind):
    """As the package does, see test_timm.py; from the configuration alone and with the weights."""
    is_argument = "model_args" in UNSAFE[name]
    reason = f"contain '{name}'" if is_argument else f"'{name}' is not the name of a timm architecture"
    messages = answers["unsafe"][name + kind]
    assert len(messages) == 2 and all(reason in message for message in messages)


def test_pretrained_weights_and_labels_are_loaded(tmp_path, vit_config):
    plain = ViTForImageClassification(ViTConfig(**{**vit_config.to_dict(), "num_labels": 4})).eval()
    plain.config.id2label = {0: "a", 1: "b", 2: "c", 3: "d"}
    plain.save_pretrained(tmp_path)
    model = DCALForImageClassification.from_backbone(tmp_path).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.dcal(pixel_values).last_hidden_state, plain.vit(pixel_values).last_hidden_state)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}
    assert DCALForImageClassification.from_backbone(tmp_path, num_labels=7).config.num_labels == 7


def resized_tokens(plain, pixel_values: torch.Tensor) -> torch.Tensor:
    """Tokens of a plain encoder for another input size, with positions resampled by its own library."""
    if is_cait(plain.config):
        return resized_cait_tokens(plain, pixel_values)
    if plain.config.model_type == "timm_wrapper":
        resized = copy.deepcopy(plain)
        resized.timm_model.set_input_size(tuple(pixel_values.shape[-2:]))
        return resized(pixel_values).last_hidden_state
    kwargs = {} if "dinov" in plain.config.model_type else {"interpolate_pos_encoding": True}
    tokens = plain(pixel_values, **kwargs).last_hidden_state
    return plain.post_layernorm(tokens) if plain.config.model_type == "clip_vision_model" else tokens


def resized_cait_tokens(plain, pixel_values: torch.Tensor) -> torch.Tensor:
    """CaiT does not support other input sizes; timm's resampling function does."""
    size = list(pixel_values.shape[-2:])
    config = copy.deepcopy(plain.config)
    config.model_args["img_size"] = size
    state = plain.state_dict()
    name = "timm_model.pos_embed"
    state[name] = resample_abs_pos_embed(state[name], [side // 8 for side in size], (4, 4), num_prefix_tokens=0)
    resized = AutoModel.from_config(config).eval()
    resized.load_state_dict(state)
    return resized(pixel_values).last_hidden_state


def test_resized_positions_equal_those_of_the_encoders_library(tmp_path, any_backbone_config):
    plain = add_noise(AutoModel.from_config(any_backbone_config), 0.1)
    plain.save_pretrained(tmp_path)
    for image_size in ((48, 64), (16, 24)):
        model = DCALModel.from_backbone(tmp_path, image_size=image_size, **branches_for(any_backbone_config)).eval()
        pixel_values = torch.randn(2, 3, *image_size)
        expected = resized_tokens(plain, pixel_values)
        torch.testing.assert_close(model(pixel_values).last_hidden_state, expected)
        model.save_pretrained(tmp_path / "dcal")
        assert AutoModel.from_pretrained(tmp_path / "dcal").config.image_size == image_size


def test_the_image_encoder_of_a_clip_checkpoint(tmp_path):
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
    last = model.encoder.blocks[-1].state_dict()
    for block in model.glca.blocks:
        assert all(torch.equal(value, last[name]) for name, value in block.state_dict().items())


def test_missing_weights_are_initialised(tmp_path, backbone_config):
    """Loads a checkpoint of SA only with all branches; the GLCA block and the log-variances are new."""
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
        if "gamma_" in name:
            assert torch.equal(parameter, torch.full_like(parameter, 1e-5))


def test_a_dcal_checkpoint_is_not_a_backbone(tmp_path, vit_config):
    saved_model(tmp_path, vit_config)
    with pytest.raises(ValueError, match="is a DCAL checkpoint already: load it with from_pretrained"):
        DCALForImageClassification.from_backbone(tmp_path)


@pytest.fixture
def new_compiler() -> None:
    """Resets the compiler, which compiles the same `forward` only a few times per process."""
    torch.compiler.reset()


@pytest.mark.usefixtures("new_compiler")
@pytest.mark.parametrize(
    "name", ["vit", "dinov3_vit", "clip_vision_model", "swin", "timm_deit", "timm_cait", "timm_eva02"]
)
def test_compiled_and_exported_models_agree(backbone_configs, name):
    config = backbone_configs[name]
    model = DCALForImageClassification.from_backbone(config, num_labels=3, **branches_for(config)).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    expected = model(pixel_values).logits
    exported = torch.export.export(model, (), {"pixel_values": pixel_values}).module()
    torch.testing.assert_close(exported(pixel_values=pixel_values).logits, expected)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pixel_values=pixel_values).logits, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("new_compiler")
def test_inductor_compiles_the_whole_graph(any_backbone_config):
    branches = branches_for(any_backbone_config)
    model = DCALForImageClassification.from_backbone(any_backbone_config, num_labels=3, **branches).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(pixel_values=pixel_values).logits, model(pixel_values).logits)


def test_checkpointing_and_autocast_change_only_precision(any_backbone_config):
    fields = {"num_labels": 3, "drop_path_rate": 0.2, **branches_for(any_backbone_config)}
    model = DCALForImageClassification.from_backbone(any_backbone_config, **fields).train()
    inputs = {"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 0])}
    inputs["pairs"] = torch.tensor([[0, 3], [1, 2]])

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
