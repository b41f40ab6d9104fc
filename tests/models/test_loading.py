"""Loading rejects checkpoints with missing or non-finite tensors, and names them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    TimmWrapperConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from dcal_hf import DCALConfig, DCALForImageClassification, DCALForReID, DCALModel

from helpers import TINY_SIZES, classifier


@pytest.fixture
def checkpoint(tmp_path, vit_config):
    classifier(vit_config).save_pretrained(tmp_path)
    return tmp_path


def change(checkpoint, change_tensors) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    change_tensors(tensors)
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})


def names(checkpoint) -> list[str]:
    return sorted(load_file(checkpoint / "model.safetensors"))


LOADERS = [AutoModelForImageClassification, DCALForImageClassification, AutoModel, DCALModel]


@pytest.mark.parametrize("loader", LOADERS)
def test_a_missing_tensor_is_named(checkpoint, loader):
    name = next(name for name in names(checkpoint) if "glca.blocks" in name)
    change(checkpoint, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match="is incomplete, it lacks (dcal.)?glca.blocks.0.*: download it again"):
        loader.from_pretrained(checkpoint)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("number", [torch.nan, -torch.inf])
def test_non_finite_tensors_are_named(checkpoint, loader, number):
    def spoil(tensors):
        next(value for name, value in sorted(tensors.items()) if "embeddings" in name).view(-1)[3] = number

    change(checkpoint, spoil)
    with pytest.raises(ValueError, match="has NaN or infinity in (dcal.)?backbone.emb.*: use one from before"):
        loader.from_pretrained(checkpoint)


def test_many_missing_tensors_are_counted(checkpoint):
    change(checkpoint, lambda tensors: [tensors.pop(name) for name in names(checkpoint)[:16]])
    with pytest.raises(ValueError, match=r"it lacks [^,]*, [^,]*, [^,]*, \.\.\. \(16 tensors\): download it again"):
        DCALForImageClassification.from_pretrained(checkpoint)


def test_a_missing_classifier_is_an_error_only_for_the_classifier(checkpoint):
    change(checkpoint, lambda tensors: tensors.pop("sa_classifier.weight"))
    with pytest.raises(ValueError, match="it lacks sa_classifier.weight: download it again"):
        DCALForImageClassification.from_pretrained(checkpoint)
    assert isinstance(AutoModel.from_pretrained(checkpoint), DCALModel)


def test_unreadable_weights_are_named(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="checkpoint .* cannot be read: Error while deserializing .*; check the"):
        DCALForImageClassification.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def in_several_files(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of a DCAL model and of a plain encoder whose weights are in several files."""
    folder, config = tmp_path_factory.mktemp("shards"), ViTConfig(image_size=32, **TINY_SIZES)
    classifier(config).save_pretrained(folder / "dcal", max_shard_size="8KB")
    ViTModel(config).save_pretrained(folder / "encoder", max_shard_size="8KB")
    return {"from_pretrained": folder / "dcal", "from_backbone": folder / "encoder"}


def cut_off(index: str) -> str:
    return index[:150]


def without_map(index: str) -> str:
    return '{"metadata": {}}'


def numbered(index: str) -> str:
    return json.dumps({"metadata": {}, "weight_map": {"glca": 3}})


def misnamed(index: str) -> str:
    return index.replace("model-00001-", "model-00077-")


def too_long(index: str) -> str:
    return index.replace("model-00001-", 300 * "m" + "-")


def elsewhere(index: str) -> str:
    return index.replace("model-00001-", "../dcal/model-00001-")


@pytest.mark.parametrize("loader", ["from_pretrained", "from_backbone"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_off, "is not valid JSON"),
        (without_map, "does not list the files of the weights"),
        (numbered, "does not list the files of the weights"),
        (misnamed, "lists model-00077-of-[0-9]*.safetensors, which is missing"),
        (too_long, "lists m{100,}.*, which is missing"),
        (elsewhere, "lists ../dcal/model-00001-of-[0-9]*.safetensors, which is no file of this folder"),
    ],
)
def test_a_damaged_list_of_weight_files_is_named(tmp_path, in_several_files, loader, damage, reason):
    """transformers itself raises a FileNotFoundError, or an error that names no file."""
    folder = shutil.copytree(in_several_files[loader], tmp_path / "copy")
    assert isinstance(getattr(DCALModel, loader)(folder), DCALModel)
    index = folder / "model.safetensors.index.json"
    index.write_text(damage(index.read_text()))
    sentence = f"^The checkpoint {folder} is damaged: model.safetensors.index.json {reason}: download it again.$"
    with pytest.raises(ValueError, match=sentence):
        getattr(DCALModel, loader)(folder)


def test_only_safetensors_are_read(checkpoint):
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    for loader in LOADERS:
        with pytest.raises(OSError, match="no file named model.safetensors"):
            loader.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("architecture", "sizes", "reason"),
    [
        ("vit_tiny_patch16_224", {"depth": "two"}, "cannot be read: .*; check the options, or download it again.$"),
        ("xcit_nano_12_p16_224", {}, "DCAL cannot use timm's 'xcit_nano_12_p16_224': it is not built from"),
    ],
)
def test_an_encoder_that_cannot_be_used_is_named(tmp_path, architecture, sizes, reason):
    TimmWrapperConfig(architecture=architecture, model_args=sizes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^(The checkpoint )?{tmp_path}:? {reason}"):
        DCALModel.from_backbone(tmp_path)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("neck", "yes", "Field 'neck' expected bool, got str"),
        ("local_query_ratio", 3, "local_query_ratio=3 must be above 0 and at most 1"),
        ("branches", 7, "Field 'branches'"),
        ("num_glca_blocks", 10**9, "num_glca_blocks=1000000000 must be at most 1000"),
        ("dtype", 3, "'int' object has no attribute"),
        ("backbone_config", [1], "Field 'backbone_config'"),
        ("backbone_config.num_hidden_layers", 10**9, "The backbone's 1000000000 blocks"),
        ("backbone_config.hidden_size", 64, "ignore_mismatched_sizes"),
        ("backbone_config.num_attention_heads", 0, "."),
    ],
)
def test_an_invalid_field_is_reported_with_its_checkpoint(checkpoint, loader, field, value, reason):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    *parent, name = field.split(".")
    (config[parent[0]] if parent else config)[name] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{checkpoint} cannot be read: .*{reason}.*; check the options") as error:
        loader.from_pretrained(checkpoint)
    assert "\n" not in str(error.value) and str(error.value).count(str(checkpoint)) == 1


def test_added_branches_are_newly_initialised(tmp_path, vit_config):
    classifier(vit_config, branches=("sa",)).save_pretrained(tmp_path)
    whole = DCALForImageClassification.from_pretrained(tmp_path, branches=("sa", "glca"))
    assert whole.glca_classifier.weight.isfinite().all()
    assert whole.config.inference_branches == ("sa", "glca")


@pytest.mark.parametrize("branches", [("sa", "glca"), ("sa", "pwca")])
def test_other_branches_get_new_log_variances(checkpoint, branches):
    """Theirs have another size; no other tensor may have one."""
    model = DCALForImageClassification.from_pretrained(checkpoint, branches=branches)
    assert model.loss_weights.log_vars.tolist() == [0.0, 0.0]
    saved = load_file(checkpoint / "model.safetensors")
    assert torch.equal(model.sa_classifier.weight, saved["sa_classifier.weight"])
    with pytest.raises(ValueError, match=f"{checkpoint} cannot be read: .*_classifier.*ignore_mismatched_sizes"):
        DCALForImageClassification.from_pretrained(checkpoint, branches=branches, num_labels=9)
    options = {"num_labels": 9, "ignore_mismatched_sizes": True}
    assert DCALForImageClassification.from_pretrained(checkpoint, branches=branches, **options).config.num_labels == 9


def test_log_variances_belong_to_branches(tmp_path, vit_config):
    """By name, in any order; of other branches, even of as many, they are new."""
    model = classifier(vit_config, branches=("sa", "pwca"))
    model.loss_weights.log_vars.data = torch.tensor([1.0, 2.0])
    model.save_pretrained(tmp_path)
    for loader in (DCALForImageClassification, AutoModelForImageClassification):
        for branches, expected in ((("pwca", "sa"), [2, 1]), (("sa", "pwca"), [1, 2]), (("glca", "sa"), [0, 0])):
            loaded, _ = loader.from_pretrained(tmp_path, branches=branches, output_loading_info=True)
            assert loaded.loss_weights.log_vars.tolist() == expected
    assert DCALForImageClassification.from_pretrained(tmp_path).loss_weights.log_vars.tolist() == [1.0, 2.0]


def test_a_configuration_that_was_changed_is_checked(checkpoint):
    config = DCALConfig.from_pretrained(checkpoint)
    config.branches = ("sa",)
    with pytest.raises(ValueError, match=r"inference_branches=\('sa', 'glca'\) must name one or more of \('sa',\)"):
        DCALForImageClassification.from_pretrained(checkpoint, config=config)
    config.inference_branches = ("sa",)
    images = torch.rand(2, 3, 32, 32)
    plain, whole = (DCALForImageClassification.from_pretrained(checkpoint, config=c) for c in (config, None))
    assert torch.equal(plain(images).logits, whole(images).sa_logits)


def test_a_branch_that_is_left_out_does_not_run(checkpoint):
    images = torch.rand(2, 3, 32, 32)
    whole, plain = (
        DCALForImageClassification.from_pretrained(checkpoint, **options)(images)
        for options in ({}, {"branches": ["sa"]})
    )
    assert plain.glca_logits is None and torch.equal(plain.sa_logits, whole.sa_logits)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"local_query_ratio": 30}, "local_query_ratio=30 must be above 0 and at most 1"),
        ({"local_query_selection": "foo"}, "local_query_selection='foo' is unknown; choose one of rollout, "),
        ({"branches": ["sa", "foo"]}, "must name one or more of"),
        ({"num_pwca_blocks": 99}, "num_pwca_blocks=99 must be between 0 and the backbone's 3 blocks"),
        ({"image_size": 64}, r"image_size=\(64, 64\) cannot replace the checkpoint's \(32, 32\)"),
    ],
)
def test_an_invalid_option_at_loading_is_reported(checkpoint, loader, options, reason):
    with pytest.raises(ValueError, match=f"{checkpoint} cannot be read: .*{reason}.*; check the options"):
        loader.from_pretrained(checkpoint, **options)


def test_the_image_size_of_rotary_positions_is_free(tmp_path, backbone_configs):
    classifier(backbone_configs["dinov3_vit"]).save_pretrained(tmp_path)
    model = DCALForImageClassification.from_pretrained(tmp_path, image_size=64)
    assert model.config.image_size == (64, 64) and model(torch.rand(1, 3, 64, 64)).logits.isfinite().all()


def test_other_tasks_and_classes_get_new_heads(tmp_path, checkpoint):
    other = DCALForImageClassification.from_pretrained(checkpoint, num_labels=7, ignore_mismatched_sizes=True)
    assert other.sa_classifier.out_features == 7
    reid = DCALForReID.from_pretrained(checkpoint, neck=True, num_labels=3, ignore_mismatched_sizes=True)
    assert reid.classifiers["sa"].out_features == 3
    AutoModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "base")
    again, report = DCALForImageClassification.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {
        "sa_classifier", "glca_classifier", "loss_weights"
    }
    for name, value in AutoModel.from_pretrained(checkpoint).state_dict().items():
        assert torch.equal(again.dcal.state_dict()[name], value)


@pytest.fixture
def encoder(tmp_path, vit_config):
    """The checkpoint of a plain encoder, as of a classifier: without a pooler."""
    ViTForImageClassification(vit_config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("loader", [DCALForImageClassification, DCALModel])
def test_a_plain_encoder_is_not_a_checkpoint(encoder, loader):
    sentence = f"{encoder} is a checkpoint of type 'vit', not of DCAL: build a DCAL model with its weights"
    with pytest.raises(ValueError, match=sentence):
        loader.from_pretrained(encoder)


def test_an_encoder_without_a_pooler_is_complete(encoder):
    weight = load_file(encoder / "model.safetensors")["vit.encoder.layer.2.attention.attention.key.weight"]
    model = DCALForImageClassification.from_backbone(encoder, num_labels=3)
    assert torch.equal(model.base_model.backbone.layers[2].attention.k_proj.weight, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "auto"])
def test_an_encoder_can_be_loaded_in_another_precision(tmp_path, vit_config, dtype):
    """`dtype` is given as in transformers, where "auto" is the precision of the checkpoint; GLCA and heads have it,
    too."""
    ViTForImageClassification(vit_config).to(torch.bfloat16).save_pretrained(tmp_path)
    for kwargs, expected in ({}, torch.float32), ({"pretrained_kwargs": {"dtype": dtype}}, torch.bfloat16):
        model = DCALForImageClassification.from_backbone(tmp_path, num_labels=3, **kwargs)
        assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_saved_configurations_contain_no_local_path(encoder):
    """transformers records where the encoder was loaded from. The second time, an earlier version has recorded it."""
    DCALForImageClassification.from_backbone(encoder, num_labels=3).save_pretrained(encoder / "first")
    path = encoder / "first" / "config.json"
    config = json.loads(path.read_text())
    assert str(encoder) not in str(config)
    config["backbone_config"]["_name_or_path"] = str(encoder)
    path.write_text(json.dumps(config))
    AutoModelForImageClassification.from_pretrained(encoder / "first").save_pretrained(encoder / "second")
    assert str(encoder) not in (encoder / "second" / "config.json").read_text()


def test_an_encoder_with_a_missing_tensor_is_rejected(encoder):
    change(encoder, lambda tensors: tensors.pop("vit.encoder.layer.2.attention.attention.key.weight"))
    with pytest.raises(ValueError, match=f"{encoder} is incomplete, it lacks layers.2.attention.k_proj.weight: "):
        DCALForImageClassification.from_backbone(encoder, num_labels=3)


def test_a_non_finite_encoder_is_rejected(encoder):
    change(encoder, lambda tensors: tensors["vit.embeddings.cls_token"].fill_(torch.nan))
    with pytest.raises(ValueError, match=f"{encoder} has NaN or infinity in embeddings.cls_token"):
        DCALForImageClassification.from_backbone(encoder, num_labels=3)


def test_an_encoder_whose_weights_cannot_be_read_is_named(encoder):
    path = encoder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"The checkpoint {encoder} cannot be read: .*; check the options"):
        DCALForImageClassification.from_backbone(encoder, num_labels=3)
