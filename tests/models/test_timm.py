"""timm's encoders: checkpoints in timm's format, the R50 hybrid, and unsupported architectures."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    TimmWrapperConfig,
    TimmWrapperImageProcessor,
)

from dcal_hf import DCALConfig, DCALForImageClassification, DCALModel
from dcal_hf.transforms import fine_grained_processor, reid_processor

from helpers import add_noise


def test_a_checkpoint_in_timms_own_format(tmp_path):
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
    plain = add_noise(timm.create_model("deit_tiny_patch16_224", num_classes=3, **args), 0.1)
    names = {"label_names": ["wren", "robin", "finch"]}
    save_for_hf(plain, tmp_path, model_config=names, model_args=args, safe_serialization=True)
    model = DCALForImageClassification.from_backbone(tmp_path).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.dcal(pixel_values).last_hidden_state, plain.forward_features(pixel_values))
    assert model.config.id2label == {0: "wren", 1: "robin", 2: "finch"}


def test_the_r50_hybrid_of_the_paper(tmp_path):
    """The convolutional stem runs once for both branches; the grid is that of its feature map."""
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    config = TimmWrapperConfig(architecture="vit_base_r50_s16_224", model_args=args)
    model = DCALForImageClassification.from_backbone(config, image_size=(96, 64), num_labels=3)
    assert model.config.grid == (6, 4)
    stem_runs = []
    model.dcal.backbone.timm_model.patch_embed.register_forward_hook(lambda *_: stem_runs.append(1))
    pixel_values = torch.randn(2, 3, 96, 64)
    output = model(pixel_values, labels=torch.tensor([0, 1]), pairs=torch.tensor([[0, 1]]))
    output.loss.backward()
    assert len(stem_runs) == 1
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(pixel_values).logits, model.eval()(pixel_values).logits)


def test_the_configuration_is_completed_from_the_architecture():
    config = DCALConfig(backbone_config=TimmWrapperConfig(architecture="vit_base_patch16_224"))
    assert (config.backbone_config.hidden_size, config.num_layers, config.grid) == (768, 12, (14, 14))
    again = DCALConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    by_name = DCALConfig(backbone_config={"model_type": "timm_wrapper", "architecture": "vit_base_patch16_224"})
    assert by_name.to_dict() == config.to_dict()


def test_cait_has_both_kinds_of_blocks():
    config = DCALConfig(backbone_config=TimmWrapperConfig(architecture="cait_xs24_384"))
    assert (config.backbone_config.hidden_size, config.num_layers, config.grid) == (288, 26, (24, 24))


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("swin_tiny_patch4_window7_224", "or a Swin of transformers, such as microsoft/swin-tiny-patch4-window7-224"),
        ("xcit_nano_12_p16_224", "not built from timm's standard Block and Attention"),
        ("vit_base_patch16_rpn_224", "not built from timm's standard Block and Attention"),
        ("vit_base_patch16_siglip_224", "needs a CLS token"),
    ],
)
def test_unsupported_architectures_are_rejected(architecture, reason):
    with pytest.raises(ValueError, match=f"cannot use timm's '{architecture}'.*{reason}"):
        DCALModel.from_backbone(TimmWrapperConfig(architecture=architecture))


def write_config(folder: Path, is_complete: bool, **fields: object) -> None:
    """Writes the config.json of a DCAL checkpoint with a timm ViT, with changed fields of the backbone."""
    backbone = {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", **fields}
    if is_complete:
        sizes = DCALConfig(backbone_config=TimmWrapperConfig(architecture="vit_tiny_patch16_224")).to_dict()
        backbone = {**sizes["backbone_config"], **backbone}
    (folder / "config.json").write_text(json.dumps({"model_type": "dcal", "backbone_config": backbone}))


@pytest.mark.parametrize("is_complete", [False, True])
@pytest.mark.parametrize(
    "model_args",
    [
        {"checkpoint_path": "weights.pth"},
        {"pretrained": True},
        {"pretrained_cfg": {"file": "weights.pth"}},
        {"pretrained_cfg_overlay": {"url": "http://localhost/weights.pth"}},
        {"cache_dir": "elsewhere"},
        {"features_only": True},
        {"an_argument_of_a_later_timm": 1},
    ],
    ids=lambda model_args: next(iter(model_args)),
)
def test_a_checkpoint_can_set_only_sizes_and_switches(tmp_path, model_args, is_complete):
    """Other arguments make timm read files and URLs, even in `AutoConfig.from_pretrained`."""
    write_config(tmp_path, is_complete, model_args={"depth": 2, **model_args})
    (name,) = model_args
    with pytest.raises(ValueError, match=f"model_args of timm's 'vit_tiny_patch16_224' contain '{name}'"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("is_complete", [False, True])
@pytest.mark.parametrize("architecture", ["local-dir:weights", "hf-hub:someone/weights", "../weights", "C:weights"])
def test_the_architecture_must_be_a_name(tmp_path, architecture, is_complete):
    write_config(tmp_path, is_complete, architecture=architecture)
    with pytest.raises(ValueError, match=f"'{architecture}' is not the name of a timm architecture"):
        AutoConfig.from_pretrained(tmp_path)


def test_arguments_of_plain_timm_checkpoints_are_checked(tmp_path):
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"checkpoint_path": "weights.pth"})
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^{tmp_path}: model_args of timm's .* contain 'checkpoint_path'"):
        DCALModel.from_backbone(tmp_path)


def test_an_unknown_timm_family_is_rejected(tmp_path):
    write_config(tmp_path, True, timm_family="swin")
    with pytest.raises(ValueError, match="cannot use a backbone of type 'timm_wrapper' and family 'swin'"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("prepare", [fine_grained_processor, reid_processor])
def test_timms_normalisation_is_kept(tmp_path, prepare):
    """timm's own steps (ImageNet's, at its own size) are not saved."""
    cfg = {"input_size": (3, 224, 224), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic"}
    prepare(TimmWrapperImageProcessor(pretrained_cfg=cfg), (64, 32)).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    grey = Image.new("RGB", (50, 70), (128, 128, 128))
    pixels = processor(grey, return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, 64, 32)
    expected = (128 / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.4])
    torch.testing.assert_close(pixels.mean(dim=(1, 2)), expected)
    assert processor.resample == Image.Resampling.BICUBIC
