import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import BertConfig, SiglipVisionConfig, SwinConfig, Swinv2Config, ViTConfig

from dcal_hf import DCALConfig


def test_defaults_follow_the_paper():
    config = DCALConfig(backbone_config=ViTConfig(image_size=448, patch_size=16))
    assert (config.num_glca_blocks, config.num_pwca_blocks, config.num_layers) == (1, 12, 12)
    assert config.grid == (28, 28)
    assert config.num_local_queries == 78
    assert config.branches == ("sa", "glca", "pwca")
    assert config.inference_branches == ("sa", "glca")
    assert config.glca_readout == "cls"


def test_configuration_round_trip(tmp_path):
    config = DCALConfig(
        backbone_config=ViTConfig(image_size=[256, 128]), branches=("sa", "glca"), local_query_ratio=0.3, num_labels=7
    )
    config.save_pretrained(tmp_path)
    assert DCALConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert DCALConfig.from_pretrained(tmp_path).grid == (16, 8)


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        (("sa",), ("sa",)),
        (("glca",), ("glca",)),
        (("pwca",), ("sa",)),
        (("glca", "pwca"), ("sa", "glca")),
        (("sa", "pwca"), ("sa",)),
    ],
)
def test_inference_follows_the_trained_branches(branches, expected):
    assert DCALConfig(branches=branches).inference_branches == expected


@pytest.mark.parametrize("num_pwca_blocks", [0, 3])
def test_pwca_needs_its_branch_and_blocks(num_pwca_blocks):
    assert DCALConfig(num_pwca_blocks=num_pwca_blocks).uses_pwca == (num_pwca_blocks > 0)
    assert not DCALConfig(num_pwca_blocks=num_pwca_blocks, branches=("sa", "glca")).uses_pwca


@pytest.mark.parametrize("ratio, queries", [(1e-6, 1), (0.1, 19), (1, 196)])
def test_the_number_of_local_queries_is_rounded_down_to_at_least_one(ratio, queries):
    assert DCALConfig(local_query_ratio=ratio).num_local_queries == queries


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"local_query_ratio": 0.0}, "local_query_ratio=0.0 must be above 0"),
        ({"local_query_ratio": 1.5}, "local_query_ratio=1.5 must be above 0 and at most 1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 must be at least 0 and below 1"),
        ({"local_query_selection": "attention"}, "choose one of rollout, last_layer, similarity, random"),
        ({"glca_scope": "all"}, "glca_scope='all' is unknown; choose one of global, local"),
        ({"glca_readout": "mean"}, "choose one of local, cls"),
        ({"loss_weighting": "fixed"}, "loss_weighting='fixed' is unknown; choose one of uncertainty, equal"),
        ({"loss_weighting": "equal", "initial_log_var": 1.0}, "initial_log_var=1.0 has no effect with"),
        ({"num_pwca_blocks": 13}, "num_pwca_blocks=13 must be between 0 and the backbone's 12 blocks"),
        ({"num_glca_blocks": 0}, "num_glca_blocks=0 must be at least 1"),
        ({"image_size": 450}, r"image_size=\(450, 450\) must be a multiple of the backbone's patch size \(16, 16\)"),
        ({"image_size": (256, 120)}, "must be a multiple"),
        ({"branches": ()}, "must name one or more"),
        ({"branches": ("sa", "sa")}, "each once"),
        ({"branches": ("sa", "swa")}, "must name one or more"),
        ({"inference_branches": ("pwca",)}, r"inference_branches=\('pwca',\) must name one or more"),
        ({"branches": ("sa",), "inference_branches": ("glca",)}, "have a classifier"),
        ({"inference_branches": ("sa", "sa")}, r"must name one or more of \('sa', 'glca'\), each once"),
        ({"neck_feature": "after"}, "neck_feature='after' needs a neck: set neck=True"),
        ({"neck_feature": "both"}, "neck_feature='both' is unknown; choose one of before, after"),
        ({"identity_loss": "arcface"}, "identity_loss='arcface' needs a neck"),
        ({"image_size": (448,)}, r"must be one integer, or two \(height, width\), got \(448,\)"),
        ({"local_query_ration": 0.3}, "DCALConfig has no field 'local_query_ration', but 'local_query_ratio'"),
        ({"hidden_dropout_prob": 0.1}, "no field 'hidden_dropout_prob', but the encoder has: set it in"),
    ],
)
def test_invalid_fields_raise_clear_errors(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        DCALConfig(**fields)


def test_fields_of_transformers_are_kept():
    config = DCALConfig(num_labels=4, attn_implementation="eager", name_or_path="x", auto_map={}, note="own")
    assert (config.num_labels, config._attn_implementation, config.note) == (4, "eager", "own")


def test_the_ratio_is_exact_in_decimal():
    config = DCALConfig(backbone_config=ViTConfig(image_size=160), local_query_ratio=0.29)
    assert (config.grid, config.num_local_queries) == ((10, 10), 29)


def test_a_wrong_type_error_names_the_field():
    with pytest.raises(StrictDataclassError, match="local_query_ratio"):
        DCALConfig(local_query_ratio="a tenth")


@pytest.mark.parametrize("backbone_config", [SiglipVisionConfig(), Swinv2Config(), BertConfig()])
def test_unsupported_backbones_are_rejected(backbone_config):
    with pytest.raises(ValueError) as error:
        DCALConfig(backbone_config=backbone_config)
    assert f"'{backbone_config.model_type}'" in str(error.value)
    assert "vit, deit, dinov2, dinov2_with_registers, dinov3_vit, clip_vision_model, swin" in str(error.value)


def test_swin_counts_the_blocks_of_all_stages_and_has_no_glca():
    config = DCALConfig(backbone_config=SwinConfig(), image_size=448, branches=("sa", "pwca"))
    assert (config.num_layers, config.num_pwca_blocks, config.grid) == (12, 12, (112, 112))
    assert config.inference_branches == ("sa",)
    with pytest.raises(ValueError, match=r"'swin' has no CLS token.*use branches=\('sa', 'pwca'\)"):
        DCALConfig(backbone_config=SwinConfig())
    with pytest.raises(ValueError, match=r"\(224, 240\) must be a multiple of .* size \(32, 32\) in its last stage"):
        DCALConfig(backbone_config=SwinConfig(), image_size=(224, 240), branches=("sa", "pwca"))
