"""Every preset: one optimiser step of its model, with random weights, on two fake images at its true size."""

from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    PreTrainedConfig,
    SwinConfig,
    TimmWrapperConfig,
    ViTConfig,
)

from dcal_hf import DCALConfig, DCALForImageClassification, DCALForReID, DCALReIDTrainer, DCALTrainer


CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
ALL = {path.stem: path for path in sorted(CONFIGS.glob("*.yaml")) if "base" in yaml.safe_load(path.read_text())}
NUM_CLASSES = {
    "cub200": 200,
    "stanford_cars": 196,
    "fgvc_aircraft": 100,
    "veri776": 576,
    "msmt17": 1041,
    "market1501": 751,
    "dukemtmc": 702,
}
# The paper's runs, named by their data set; and those for own data, named by their encoder.
PRESETS = [name for name in ALL if name.startswith(tuple(NUM_CLASSES))]
OWN = [name for name in ALL if name not in PRESETS]
REID = ("veri776", "msmt17", "market1501", "dukemtmc")
SMALL = {"hidden_size": 384, "num_attention_heads": 6}
OWN_ENCODERS = {
    "facebook/dinov2-small": Dinov2Config(image_size=518, patch_size=14, **SMALL),
    "facebook/dinov3-vits16-pretrain-lvd1689m": DINOv3ViTConfig(
        num_register_tokens=4, intermediate_size=1536, **SMALL
    ),
    "openai/clip-vit-base-patch16": CLIPVisionConfig(patch_size=16),
}
# The default suite tests one preset per input size.
FAST = ("cub200_deit_tiny", "market1501_deit_small", "veri776_deit_tiny", "msmt17_swin_tiny")
STEPS = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]
# Warm-up would start with a learning rate of 0.
ONE_STEP = ("--max_steps 1 --warmup_steps 0 --per_device_train_batch_size 2 --dataloader_num_workers 0 "
            "--save_strategy no --disable_tqdm true").split()


def architecture(checkpoint: str) -> PreTrainedConfig:
    """The configuration of a checkpoint, without a download."""
    widths = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
    if checkpoint in OWN_ENCODERS:
        return OWN_ENCODERS[checkpoint]
    if checkpoint.startswith("timm/"):
        name = checkpoint.removeprefix("timm/").partition(".")[0]
        # CaiT's initial layer scale is so small that one float32 step would not change the scaled parameters.
        sizes = {"img_size": 224, **({"init_values": 1.0} if name.startswith("cait") else {})}
        return TimmWrapperConfig(architecture=name, model_args=sizes)
    if "/swin-tiny-" in checkpoint:
        return SwinConfig()
    width, heads = next(sizes for name, sizes in widths.items() if f"-{name}-" in checkpoint)
    return ViTConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width)


def is_reid(name: str) -> bool:
    return name.startswith(REID) or name.endswith("_reid")


@pytest.fixture
def parse(import_recipe, tmp_path):
    """Parses a preset with the recipe, with additional options."""

    def read(name: str, *options: str) -> tuple:
        options = ["--data_dir", "images", "--output_dir", str(tmp_path), "--use_cpu", *options]
        recipe = import_recipe("run_reid" if is_reid(name) else "run_fgvc")
        return recipe.parse_arguments(recipe.ARGUMENTS, [str(ALL[name]), *options])

    return read


def test_every_result_of_the_paper_has_a_preset():
    backbones = ("deit_tiny", "deit_small", "deit_base", "vit_base", "r50_vit_base")
    expected = {f"{name}_{backbone}" for name in NUM_CLASSES for backbone in backbones}
    expected |= {"cub200_cait_xs24", "cub200_swin_tiny", "msmt17_swin_tiny"}
    assert set(PRESETS) == expected - {f"{name}_r50_vit_base" for name in REID}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_follow_the_papers_recipe(parse, name):
    model_args, data_args, training_args = parse(name)
    text = ALL[name].read_text()
    assert text.startswith("# ") and "The paper: " in text and f"recipes/configs/{name}.yaml --data_dir" in text
    assert data_args.dataset_name in NUM_CLASSES and name.startswith(data_args.dataset_name)
    assert yaml.safe_load(text)["output_dir"] == f"out/{name}"
    assert training_args.do_train and training_args.do_eval and model_args.drop_path_rate == 0.1
    assert model_args.branches == (["sa", "pwca"] if name.endswith("swin_tiny") else None)
    assert model_args.glca_readout == "cls"
    if name.startswith(REID):
        size = (256, 256) if name.startswith("veri776") else (256, 128)
        assert (model_args.input_size, model_args.local_query_ratio) == (size, 0.3)
        assert (training_args.num_train_epochs, training_args.total_train_batch_size) == (120, 64)
        assert (training_args.learning_rate, training_args.weight_decay) == (0.008, 1e-4)
        assert (data_args.padding, data_args.random_erasing) == (10, 0.5)
    else:
        assert (model_args.input_size, model_args.local_query_ratio) == (448, 0.1)
        assert (training_args.num_train_epochs, training_args.total_train_batch_size) == (100, 16)
        assert training_args.learning_rate == pytest.approx(5e-4 / 512 * 16) and training_args.weight_decay == 0.05
        assert data_args.eval_split == "test"


@pytest.mark.parametrize("name", OWN)
def test_a_preset_for_your_own_data_says_that_it_has_not_been_run(parse, name):
    model_args, data_args, training_args = parse(name)
    text = ALL[name].read_text()
    comment = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    recipe, folder = ("run_reid", "turtles") if is_reid(name) else ("run_fgvc", "birds")
    assert f"recipes/{recipe}.py recipes/configs/{name}.yaml --data_dir {folder}" in text
    assert "has not been run with the real weights" in comment and yaml.safe_load(text)["output_dir"] == f"out/{name}"
    assert training_args.optim.value == "adamw_torch_fused" and training_args.load_best_model_at_end
    lora = (16, "all") if "lora" in name else (0, "attention")
    assert (training_args.lora_rank, training_args.lora_targets) == lora
    assert is_reid(name) or data_args.eval_split == "validation"
    config = DCALConfig(
        backbone_config=architecture(model_args.model_name_or_path),
        image_size=model_args.input_size,
        neck=is_reid(name),
        **model_args.dcal_kwargs,
    )
    assert config.grid[0] in (16, 28, 32)


@pytest.mark.parametrize("name", [*STEPS, *(pytest.param(name, marks=pytest.mark.slow) for name in OWN)])
def test_a_preset_trains_one_step(parse, name):
    options = [*ONE_STEP, "--eval_strategy", "no", "--load_best_model_at_end", "false"]
    options += ["--instances_per_identity", "1"] * is_reid(name)
    model_args, data_args, training_args = parse(name, *options)
    model_class = DCALForReID if is_reid(name) else DCALForImageClassification
    trainer_class = DCALReIDTrainer if is_reid(name) else DCALTrainer
    model = model_class.from_backbone(
        architecture(model_args.model_name_or_path),
        model_args.input_size,
        num_labels=NUM_CLASSES.get(data_args.dataset_name, 2),
        **model_args.dcal_kwargs,
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = trainer_class(model, training_args, train_dataset=fake_images(model.config.image_size))
    result = trainer.train()
    assert result.global_step == 1 and 0 < result.training_loss < 100
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    # Adapters train only the linear layers of the blocks.
    expected = [name for name in still if ".backbone." in name] if training_args.lora_rank > 0 else []
    assert still == expected


def fake_images(size: tuple[int, int]) -> Dataset:
    """Two images of two classes."""

    def noise(batch: dict[str, list]) -> dict[str, list]:
        return {"pixel_values": [torch.randn(3, *size) for _ in batch["label"]], "labels": batch["label"]}

    return Dataset.from_dict({"label": [0, 1]}).with_transform(noise)
