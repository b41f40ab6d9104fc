"""Parameter-efficient fine-tuning: a frozen backbone, layer-wise learning rates, LoRA."""

import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoModelForImageClassification

from dcal_hf import (
    DCALForImageClassification,
    DCALForReID,
    DCALReIDTrainer,
    DCALReIDTrainingArguments,
    DCALTrainingArguments,
)
from dcal_hf.training import last_checkpoint
from dcal_hf.training.lora import LORA_FILE, LORA_TARGETS, add_lora, merged_state_dict
from dcal_hf.training.parameter_groups import parameter_depths, parameter_groups

from helpers import RememberSaved, assert_same_weights, branches_for, copy_of_weights, is_cait, train_until_killed


class Noise(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        pixel_values = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": pixel_values, "labels": index % 3}


@pytest.fixture
def make_trainer(make_trainer):
    run = {"max_steps": 3, "learning_rate": 1e-2, "warmup_steps": 0, "save_strategy": "no"}
    return partial(make_trainer, train_dataset=Noise(), eval_dataset=Noise(), **run)


def moved_by_training(trainer) -> set[str]:
    before = copy_of_weights(trainer.model)
    trainer.train()
    return {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}


def in_backbone(names) -> set[str]:
    return {name for name in names if ".backbone." in name}


def adapted_weights(model) -> set[str]:
    """Names of the weights that LoRA should change in the backbone, found by module instead of by name."""
    dcal = model.dcal
    attentions = [dcal.encoder.attention(block) for block in dcal.encoder.blocks]
    weights = [m.weight for attention in attentions for m in attention.modules() if isinstance(m, nn.Linear)]
    return {name for name, parameter in model.named_parameters() if any(parameter is weight for weight in weights)}


def test_only_the_frozen_backbone_does_not_change(tmp_path, make_trainer, any_backbone_config):
    trainer = make_trainer(tmp_path, any_backbone_config, freeze_backbone=True)
    names = [name for name, _ in trainer.model.named_parameters()]
    moved = moved_by_training(trainer)
    assert in_backbone(moved) == set()
    assert moved == set(names) - in_backbone(names)
    assert {"loss_weights.log_vars", "sa_classifier.weight"} < moved


def test_a_frozen_backbone_runs_without_stochastic_depth_and_still_selects(tmp_path, make_trainer, vit_config):
    trainer = make_trainer(
        tmp_path, vit_config, {"drop_path_rate": 0.9, "glca_readout": "local"}, freeze_backbone=True
    )
    batch, labels = (torch.stack([torch.as_tensor(Noise()[i][key]) for i in range(4)]) for key in Noise()[0])
    with torch.no_grad():
        _, trained = trainer.compute_loss(trainer.model.train(), {"pixel_values": batch, "labels": labels}, True)
        evaluated = trainer.model.eval()(batch)
    torch.testing.assert_close(trained.sa_logits, evaluated.sa_logits)
    assert torch.equal(trained.local_query_indices, evaluated.local_query_indices)
    assert not torch.allclose(trained.glca_logits, evaluated.glca_logits)


def test_parameter_depths(any_backbone_config):
    model = DCALForReID.from_backbone(any_backbone_config, num_labels=3, **branches_for(any_backbone_config))
    depths = {name: depth for (name, _), depth in zip(model.named_parameters(), parameter_depths(model).values())}
    assert list(parameter_depths(model)) == list(model.parameters())
    dcal = model.dcal
    blocks = dcal.encoder.blocks
    for number, block in enumerate(blocks):
        own = [name for name, parameter in model.named_parameters() if any(parameter is p for p in block.parameters())]
        assert own and {depths[name] for name in own} == {number + 1}
    first = {name for name in depths if "embed" in name or ("token" in name and "token_only" not in name)}
    assert {depths[name] for name in first} == {0}
    # Patch merging has the depth of the last block before it.
    assert {depth for name, depth in depths.items() if "downsample" in name} <= {1}
    assert {depth for name, depth in depths.items() if not in_backbone([name])} == {4}
    final_norm = dcal.encoder.final_norm.weight
    assert parameter_depths(model)[final_norm] == 4


def test_layer_decay_and_parameters_without_weight_decay(tmp_path, make_trainer, any_backbone_config):
    trainer = make_trainer(tmp_path, any_backbone_config, layer_decay=0.5, learning_rate=1.0, weight_decay=0.3)
    groups = trainer.create_optimizer().param_groups
    assert groups[0]["lr"] == 1.0 and groups[0]["weight_decay"] == 0.3
    options = {parameter: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    depths, decayed = parameter_depths(trainer.model), trainer.get_decay_parameter_names(trainer.model)
    assert set(options) == set(trainer.model.parameters())
    for name, parameter in trainer.model.named_parameters():
        assert options[parameter] == (0.5 ** (4 - depths[parameter]), 0.3 if name in decayed else 0.0)


def test_without_layer_decay_the_groups_are_those_of_transformers(vit_config):
    model = DCALForImageClassification.from_backbone(vit_config, num_labels=3)
    names = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    plain, special = parameter_groups(model, dict.fromkeys(names, "bias"), 1.0)
    assert (plain.scale, special.scale, plain.kind, special.kind) == (1, 1, "", "bias")
    assert [id(p) for p in special.parameters] == [id(p) for n, p in model.named_parameters() if n in names]


def test_layer_decay_moves_deep_blocks_more(tmp_path, make_trainer, vit_config):
    trainer = make_trainer(tmp_path, vit_config, layer_decay=0.1, weight_decay=0.0, max_steps=1)
    before = copy_of_weights(trainer.model)
    trainer.train()
    steps = [
        (trainer.model.state_dict()[name] - before[name]).abs().amax().item()
        for name in (f"dcal.backbone.layers.{block}.mlp.fc1.weight" for block in range(3))
    ]
    # The first step of AdamW has the size of the learning rate.
    assert steps == pytest.approx([1e-5, 1e-4, 1e-3], rel=0.02)


def test_layer_decay_composes_with_transreids_biases_and_schedule(tmp_path, vit_config):
    model = DCALForReID.from_backbone(vit_config, num_labels=3)
    arguments = DCALReIDTrainingArguments(str(tmp_path), layer_decay=0.5, num_train_epochs=120, use_cpu=True)
    trainer = DCALReIDTrainer(model, arguments)
    trainer.create_optimizer_and_scheduler(num_training_steps=120)
    groups = trainer.optimizer.param_groups
    decays = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decays.pop(model.loss_weights.log_vars) == 0 and set(decays.values()) == {1e-4}
    depths = parameter_depths(model)
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        factor = 2 if name.endswith("bias") else 1
        # 1.664e-3 is the learning rate of TransReID's first epoch.
        assert rates[parameter] == pytest.approx(1.664e-3 * factor * 0.5 ** (4 - depths[parameter]))


def test_adapters_change_only_attention_and_modules_outside_the_backbone(tmp_path, make_trainer, any_backbone_config):
    trainer = make_trainer(tmp_path, any_backbone_config, lora_rank=2, activation_checkpointing=True)
    expected = adapted_weights(trainer.model)
    # Three blocks with query, key, value and output layers. timm's ViT has the first three in one layer; CaiT does not
    # in class attention, and its talking heads add a layer over the heads before and one after the softmax.
    attention = trainer.model.dcal.encoder.attention(trainer.model.dcal.encoder.blocks[0])
    in_one = getattr(attention, "qkv", None) is not None and not is_cait(any_backbone_config)
    assert len(expected) == (6 if in_one else 12)
    names = {name for name, _ in trainer.model.named_parameters()}
    moved = moved_by_training(trainer)
    assert in_backbone(moved) == expected
    assert moved - expected == names - in_backbone(names)


def test_number_of_parameters_of_adapters_on_all_linear_layers(vit_config):
    """Computed by hand: three blocks of width 32, FFN width 64, four attention and two FFN layers, rank 2."""
    counts = {}
    for targets in ("attention", "all"):
        model = DCALForImageClassification.from_backbone(vit_config, num_labels=3)
        add_lora(model, 2, targets)
        backbone = model.dcal.backbone.named_parameters()
        counts[targets] = sum(parameter.numel() for _, parameter in backbone if parameter.requires_grad)
    attention, ffn = 4 * 2 * (32 + 32), 2 * (32 + 64) + 2 * (64 + 32)
    assert counts == {"attention": 3 * attention, "all": 3 * (attention + ffn)}


def test_adapters_on_all_linear_layers_train_and_resume(tmp_path, make_trainer, vit_config):
    kwargs = {"lora_rank": 2, "lora_targets": "all", "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(tmp_path / "whole", vit_config, **kwargs)
    blocks = {id(m.weight) for b in trainer.model.dcal.encoder.blocks for m in b.modules() if isinstance(m, nn.Linear)}
    expected = {name for name, parameter in trainer.model.named_parameters() if id(parameter) in blocks}
    assert len(expected) == 3 * 6 and in_backbone(moved_by_training(trainer)) == expected
    train_until_killed(make_trainer(tmp_path / "killed", vit_config, **kwargs), 3)
    checkpoint = last_checkpoint(tmp_path / "killed")
    resumed = make_trainer(tmp_path / "killed", vit_config, **kwargs)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert_same_weights(trainer.model.state_dict(), resumed.model.state_dict())
    for other in ({"lora_targets": "attention"}, {"lora_rank": 3}):
        with pytest.raises(ValueError, match="trained with other adapters: .* its lora_rank and lora_targets"):
            make_trainer(tmp_path / "killed", vit_config, **{**kwargs, **other}).train(checkpoint)


def test_the_same_trainer_trains_new_adapters(tmp_path, make_trainer, vit_config):
    """Each call of `train` adds its own; the optimiser of an earlier one does not have them."""
    trainer = make_trainer(tmp_path, vit_config, lora_rank=2)
    first, second = (in_backbone(moved_by_training(trainer)) for _ in range(2))
    assert first == second == adapted_weights(trainer.model)


@pytest.mark.parametrize("option", [{"lora_rank": 2}, {"freeze_backbone": True}])
def test_the_backbone_can_be_trained_in_full_afterwards(tmp_path, make_trainer, vit_config, option):
    """Parameters that were frozen before stay frozen."""
    trainer = make_trainer(tmp_path, vit_config, **option)
    backbone = trainer.model.dcal.backbone
    backbone.embeddings.requires_grad_(False)
    trainer.train()
    frozen = {name for name, parameter in trainer.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in trainer.model.named_parameters() if ".embeddings." in name}


def test_the_weight_update_has_the_rank_of_the_adapters(tmp_path, make_trainer, vit_config):
    trainer = make_trainer(tmp_path, vit_config, lora_rank=2)
    before = copy_of_weights(trainer.model)
    trainer.train()
    names = adapted_weights(trainer.model)
    # Query, key, value and output projections of three blocks.
    assert len(names) == 12
    for name in names:
        update = trainer.model.state_dict()[name] - before[name]
        singular = torch.linalg.svdvals(update)
        assert singular[1] > 1e-4 > 1e-6 > singular[2]


@pytest.mark.parametrize("family", ["vit", "timm_deit"])
def test_saved_weights_equal_the_evaluated_ones_and_need_no_peft(
    tmp_path, make_trainer, backbone_configs, monkeypatch, family
):
    trainer = make_trainer(tmp_path, backbone_configs[family], lora_rank=2, save_strategy="steps", save_steps=3)
    trainer.train()
    logits = trainer.predict(Noise()).predictions[0]
    trainer.save_model()
    monkeypatch.setitem(sys.modules, "peft", None)
    batch = torch.stack([Noise()[i]["pixel_values"] for i in range(16)])
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        model, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert_same_weights(model.state_dict(), trainer.model.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(batch).logits, torch.tensor(logits))
    assert (tmp_path / "checkpoint-3" / LORA_FILE).exists() and not (tmp_path / LORA_FILE).exists()


def test_merging_equals_peft(any_backbone_config):
    branches = branches_for(any_backbone_config)
    model = DCALForImageClassification.from_backbone(any_backbone_config, num_labels=3, **branches)
    names = list(model.state_dict())
    lora = add_lora(model, 2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    merged = merged_state_dict(model)
    lora.merge_and_unload()
    assert set(merged) == set(names) and list(model.state_dict()) == names
    assert all(torch.equal(merged[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("targets", LORA_TARGETS)
def test_all_branches_attend_through_the_adapters(any_backbone_config, targets):
    """The adapters compute what the merged weights compute, including PWCA and its last block."""
    branches = branches_for(any_backbone_config)
    # In float32 the order of sums would be visible with adapters of this size.
    model = DCALForImageClassification.from_backbone(any_backbone_config, num_labels=3, **branches).eval().double()
    inputs = {"pixel_values": torch.randn(4, 3, 32, 32).double(), "pairs": torch.tensor([[0, 3], [2, 1]])}
    lora = add_lora(model, 2, targets)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=1.0 if targets == "attention" else 0.1)
    adapted = model(**inputs)
    lora.merge_and_unload()
    merged = model(**inputs)
    for name in model.config.branches:
        torch.testing.assert_close(adapted[f"{name}_logits"], merged[f"{name}_logits"])


@pytest.mark.parametrize("kwargs", [{"freeze_backbone": True}, {"layer_decay": 0.7}, {"lora_rank": 2}])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, make_trainer, vit_config, kwargs):
    kwargs |= {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    model_kwargs = {"drop_path_rate": 0.3}
    uninterrupted = make_trainer(tmp_path / "uninterrupted", vit_config, model_kwargs, **kwargs)
    uninterrupted.train()
    train_until_killed(make_trainer(tmp_path / "killed", vit_config, model_kwargs, **kwargs), 5)
    # The checkpoint contains the full backbone, so the initial weights do not matter.
    resumed = make_trainer(tmp_path / "killed", vit_config, model_kwargs, **kwargs)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.add_(1.0)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "killed"))
    assert_same_weights(uninterrupted.model.state_dict(), resumed.model.state_dict())


def test_the_best_checkpoint_with_adapters_is_restored(tmp_path, make_trainer, vit_config):
    class RememberMerged(RememberSaved):
        def on_save(self, args, state, control, model, **kwargs):
            self.weights[state.global_step] = {name: value.clone() for name, value in merged_state_dict(model).items()}

    remember = RememberMerged()
    trainer = make_trainer(
        tmp_path, vit_config, lora_rank=2, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1,
        load_best_model_at_end=True, metric_for_best_model="score",
    )
    trainer.add_callback(remember)
    trainer.compute_metrics = lambda prediction, scores=iter([0.1, 0.9, 0.5]): {"score": next(scores)}
    trainer.train()
    name = "dcal.backbone.layers.2.attention.q_proj.weight"
    assert not torch.equal(remember.weights[2][name], remember.weights[3][name])
    assert_same_weights(trainer.model.state_dict(), remember.weights[2])


def test_resuming_with_lora_needs_adapters_in_the_checkpoint(tmp_path, make_trainer, vit_config):
    make_trainer(tmp_path, vit_config, save_strategy="steps", save_steps=3).train()
    with pytest.raises(FileNotFoundError, match="was trained without LoRA"):
        make_trainer(tmp_path, vit_config, lora_rank=2).train(resume_from_checkpoint=last_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"layer_decay": 0.0}, "layer_decay=0.0 must be above 0 and at most 1"),
        ({"layer_decay": 1.5}, "layer_decay=1.5 must be above 0 and at most 1"),
        ({"lora_rank": -1}, "lora_rank=-1 must be at least 1, or 0"),
        ({"lora_rank": 2, "lora_targets": "ffn"}, "lora_targets='ffn' is unknown; choose one of attention, all"),
        ({"freeze_backbone": True, "lora_rank": 8}, "freeze_backbone cannot be combined with lora_rank"),
        ({"freeze_backbone": True, "layer_decay": 0.5}, "freeze_backbone cannot be combined with lora_rank"),
    ],
)
def test_invalid_options_raise_clear_errors(tmp_path, kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        DCALTrainingArguments(str(tmp_path), use_cpu=True, **kwargs)


def test_only_lora_needs_peft(tmp_path, monkeypatch):
    monkeypatch.setattr("dcal_hf.training.lora.is_peft_available", lambda: False)
    DCALTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ImportError, match=r'LoRA needs peft: pip install "dcal_hf\[peft\]"'):
        DCALTrainingArguments(str(tmp_path), lora_rank=8, use_cpu=True)
