import os
from collections.abc import Callable


# Set before Hugging Face libraries are imported: tests do not use the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Set before torch is imported: tiny models are no faster on two threads, and sums are equal in all processes.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
from transformers import (  # noqa: E402
    CLIPVisionConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    PreTrainedConfig,
    SwinConfig,
    TimmWrapperConfig,
    ViTConfig,
    set_seed,
)

import dcal_hf  # noqa: E402, F401


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
TIMM_SIZES = {"embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2, "img_size": 32, "patch_size": 8}


def timm_config(architecture: str, **model_args) -> TimmWrapperConfig:
    return TimmWrapperConfig(architecture=architecture, model_args={**TIMM_SIZES, **model_args})


BACKBONES = {
    "vit": ViTConfig(intermediate_size=64, **SIZES),
    "deit": DeiTConfig(intermediate_size=64, **SIZES),
    "dinov2": Dinov2Config(mlp_ratio=2, **SIZES),
    "dinov2_with_registers": Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=4, **SIZES),
    "dinov3_vit": DINOv3ViTConfig(intermediate_size=64, num_register_tokens=2, **SIZES),
    "clip_vision_model": CLIPVisionConfig(intermediate_size=64, **SIZES),
    "timm_deit": timm_config("deit_tiny_patch16_224", qk_norm=True, scale_attn_norm=True),
    "timm_deit_distilled": timm_config("deit_tiny_distilled_patch16_224"),
    "timm_dinov2_registers": timm_config("vit_small_patch14_reg4_dinov2"),
    "timm_clip": timm_config("vit_base_patch16_clip_224"),
    "timm_cait": timm_config("cait_xxs24_224", depth=1, depth_token_only=2),
    "timm_eva02": timm_config("eva02_base_patch16_clip_224"),
}
SWIN_SIZES = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 2, "patch_size": 4}
WITHOUT_CLS = {"swin": SwinConfig(image_size=32, mlp_ratio=2, **SWIN_SIZES)}
ALL_BACKBONES = {**BACKBONES, **WITHOUT_CLS}


@pytest.fixture(params=BACKBONES)
def backbone_config(request) -> PreTrainedConfig:
    """An encoder that supports all branches."""
    return BACKBONES[request.param]


@pytest.fixture(params=ALL_BACKBONES)
def any_backbone_config(request) -> PreTrainedConfig:
    """Any encoder, including one without CLS and so without GLCA; see `helpers.branches_for`."""
    return ALL_BACKBONES[request.param]


@pytest.fixture(scope="session")
def backbone_configs() -> dict[str, PreTrainedConfig]:
    return ALL_BACKBONES


@pytest.fixture
def vit_config() -> ViTConfig:
    return BACKBONES["vit"]


def pytest_terminal_summary(terminalreporter) -> None:
    """Prints what the tests of `tests/endurance` recorded, as a table: scenario, tried, outcome."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    rows = [row for report in reports for name, row in getattr(report, "user_properties", ()) if name == "endurance"]
    if rows:
        terminalreporter.section("endurance")
        for row in dict.fromkeys(map(tuple, rows)):
            terminalreporter.write_line(" | ".join(row))


@pytest.fixture
def tell(record_property) -> Callable[[str, str, str], None]:
    """Adds a row to the table of `tests/endurance`."""
    return lambda *row: record_property("endurance", row)


@pytest.fixture(autouse=True)
def seed():
    """Of `random` and NumPy, too: timm's augmentations draw from them."""
    set_seed(0)
