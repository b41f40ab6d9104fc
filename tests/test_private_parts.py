"""Private parts of other libraries that dcal_hf depends on. A failing test names what has changed.

transformers
    Blocks hand keyword arguments on to the attention, and that to the function named by `attn_implementation`; where
    they do not (Swin's grid, EVA-02), the class of a block is changed: `swin_dcal`, `eva_dcal`.
    `eager_attention_forward` and `apply_rotary_pos_emb` of each family's module.
    `_attn_implementation` of a configuration; `_init_weights`, `_no_split_modules`, `_supports_sdpa`,
    `_supports_flash_attn`, `_supports_attention_backend` and `_keys_to_ignore_on_load_unexpected` of a model, and that
    modules carry `_is_hf_initialized` once they are initialised: `modeling_dcal`, `reid_dcal`, `sharding`, `classes`.
    Methods of the Trainer, in `resumable_trainer`, `fine_tuning_trainer`, `trainer` and `reid_trainer`:
    `_get_train_sampler`, `_get_dataloader`, `_get_grad_norm`, `_get_output_dir`, `_prepare_inputs`,
    `_prepare_for_training`, `_init_training_state`, `_finalize_training`, `_save`, `_save_checkpoint`,
    `_save_rng_state`, `_load_from_checkpoint`, `_load_best_model`, `_push_from_checkpoint`,
    `_set_signature_columns_if_needed`. Its attributes `_train_batch_size`, `_memory_tracker`, `_signature_columns` and
    `_created_lr_scheduler`. `_setup_devices` of its arguments: `training_args`.
timm
    `_pos_embed` of its models, and what its constructors take: `timm_dcal`, `cait_dcal`, `eva_dcal`, `timm_args_dcal`.
accelerate
    The attribute `_hf_hook` of modules with offloaded weights: `offload_dcal`, which `test_offload` tries.
    Fields of the FSDP plugin: `sharding`; the states that `distributed_worker` changes to shard on a CPU.
evaluate
    `_info` and `_compute`, which its documentation tells to write: `fine_grained_accuracy`, `retrieval_map`.
Python
    `_option_string_actions` of a parser, whose options `recipes/arguments.py` looks a misspelt one up in; `_replace`
    of a named tuple, which is public.
"""

import ast
import inspect
import re
from argparse import ArgumentParser
from functools import cached_property
from pathlib import Path

import evaluate
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from timm.models.cait import Cait
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments, ViTModel
from transformers.models.swin.modeling_swin import SwinLayer

from dcal_hf import DCALModel
from dcal_hf.models import __file__ as models_file
from dcal_hf.models.attention_dcal import Record
from dcal_hf.models.families_dcal import ADAPTERS
from dcal_hf.models.timm_args_dcal import MODEL_ARGS

from helpers import branches_for, images


ROOT = Path(__file__).parents[1]
FOREIGN_CLASSES = (Trainer, TrainingArguments, PreTrainedModel, evaluate.Metric, VisionTransformer, Eva)


def private_names(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Names with one leading underscore that a module uses of objects, and those that it defines itself."""
    nodes = list(ast.walk(tree))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    used = {node.attr for node in attributes}
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    defined |= {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    defined |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return tuple({name for name in names if re.match("_[^_]", name)} for names in (used | defined, defined))


def test_the_list_above_is_complete():
    """What a library has and what no module here defines is private to the library."""
    paths = [path for folder in ("dcal_hf", "recipes") for path in (ROOT / folder).rglob("*.py")]
    trees = [ast.parse(path.read_text()) for path in paths]
    used, defined = (set().union(*names) for names in zip(*map(private_names, trees)))
    foreign = {name for name in used if name not in defined or any(hasattr(base, name) for base in FOREIGN_CLASSES)}
    # Operations of torch, which its own tests name so, too.
    foreign = {name for name in foreign if not hasattr(torch.ops.aten, name)}
    assert "_get_grad_norm" in foreign and foreign - set(re.findall(r"`(_\w+)`", __doc__)) == set()


def parameters_of(function) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_every_block_passes_its_arguments_to_the_attention(any_backbone_config):
    encoder = DCALModel.from_backbone(any_backbone_config, **branches_for(any_backbone_config)).eval().encoder
    pixel_values, seen = images(), []

    def attend(module, query, key, value, attention_mask, **kwargs):
        seen.append((module, kwargs["scaling"], kwargs["is_causal"]))
        return query.new_zeros(query.shape).transpose(1, 2), None

    tokens, rotary = encoder.embed(pixel_values), encoder.rotary(pixel_values)
    for block in encoder.blocks:
        record = Record()
        tokens = encoder.run(block, tokens, rotary, attend=attend, record=record)
        assert set(vars(record)) == {"keeps_weights", "query", "key"}
    width = record.query.size(-1)
    assert seen[-1] == (encoder.attention(encoder.blocks[-1]), pytest.approx(width**-0.5), False)


@pytest.mark.parametrize("name", ADAPTERS)
def test_eager_attention_takes_dcals_arguments(name):
    taken = ["module", "query", "key", "value", "attention_mask", "scaling", "dropout", "kwargs"]
    assert list(inspect.signature(ADAPTERS[name].eager_attention).parameters) == taken


def test_an_initialised_layer_is_not_initialised_again(vit_config):
    """GLCA's projections keep this flag. Otherwise they and the classifiers would get other random weights."""
    encoder = DCALModel.from_backbone(vit_config, branches=("sa",)).encoder
    before = torch.get_rng_state()
    block = encoder.copy_last_block()
    assert torch.equal(torch.get_rng_state(), before)
    assert block.attention.k_proj._is_hf_initialized and encoder.blocks[-1].attention.k_proj._is_hf_initialized


def test_swins_layer_takes_its_grid_and_pads_windows():
    taken = ["self", "hidden_states", "input_dimensions", "always_partition", "kwargs"]
    assert list(inspect.signature(SwinLayer.forward).parameters) == taken


def test_transformers_models_keep_their_initialisation_and_implementation(vit_config):
    model = ViTModel._from_config(vit_config, attn_implementation="eager")
    assert model.config._attn_implementation == "eager" and "_no_split_modules" in dir(model)
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.bias, 7.0)
    model._init_weights(layer)
    assert layer.bias.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("_finalize_training", {"self", "trial", "num_train_samples", "start_time"}),
        ("_get_grad_norm", {"self", "model", "grad_norm"}),
        ("_get_output_dir", {"self", "trial"}),
        ("_get_train_sampler", {"self", "train_dataset"}),
        ("_load_best_model", {"self"}),
        ("_load_from_checkpoint", {"self", "resume_from_checkpoint", "model"}),
        ("_push_from_checkpoint", {"self", "checkpoint_folder"}),
        ("_set_signature_columns_if_needed", {"self"}),
        ("_prepare_for_training", {"self", "max_steps", "train_dataloader", "resume_from_checkpoint"}),
        ("_prepare_inputs", {"self", "inputs"}),
        ("_save", {"self", "output_dir", "state_dict"}),
        ("_save_checkpoint", {"self", "model", "trial"}),
        ("_save_rng_state", {"self", "output_dir"}),
    ],
)
def test_the_signatures_of_the_trainers_methods(name, taken):
    assert parameters_of(getattr(Trainer, name)) == taken


def test_the_trainer_has_its_parts():
    assert {"is_training", "dataloader_key"} <= set(parameters_of(Trainer._get_dataloader))
    state = ["self", "max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"]
    assert list(inspect.signature(Trainer._init_training_state).parameters) == state
    source = inspect.getsource(Trainer)
    assert all(f"self.{name}" in source for name in ("_train_batch_size", "_memory_tracker", "_created_lr_scheduler"))
    assert isinstance(inspect.getattr_static(TrainingArguments, "_setup_devices"), cached_property)


def test_a_model_declares_what_it_supports():
    declared = ("_supports_sdpa", "_supports_flash_attn", "_supports_attention_backend")
    assert all(hasattr(PreTrainedModel, name) for name in (*declared, "_keys_to_ignore_on_load_unexpected"))


def test_a_parser_knows_its_options():
    parser = ArgumentParser()
    parser.add_argument("--speed")
    assert "--speed" in parser._option_string_actions


def test_timms_constructors_take_the_allowed_arguments():
    known = set().union(*(parameters_of(model.__init__) for model in (VisionTransformer, Cait, Eva)))
    assert sorted(MODEL_ARGS - known) == []
    assert {"block_fn", "attn_layer"} < parameters_of(VisionTransformer.__init__)
    assert {"block_layers", "attn_block", "block_layers_token", "attn_block_token_only"} < parameters_of(Cait.__init__)
    # Arguments that read files or URLs belong to other functions.
    assert not MODEL_ARGS & {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


def test_the_modules_of_timms_models():
    assert parameters_of(VisionTransformer._pos_embed) == parameters_of(Eva._pos_embed) == {"self", "x"}
    block = EvaBlock(8, 2, init_values=0.1)
    assert {"norm1", "norm2", "mlp", "drop_path1", "drop_path2"} < set(dict(block.named_children()))
    assert {"gamma_1", "gamma_2"} < set(dict(block.named_parameters())) and type(block.attn) is EvaAttention
    assert {"q_bias", "v_bias", "qkv.weight", "proj.weight"} < set(dict(block.attn.named_parameters()))
    assert block.attn.k_bias.shape == (8,) and block.attn.rotate_half is False


def test_accelerates_plugin_has_the_sharding_options():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    fields = ("fsdp_version", "activation_checkpointing", "transformer_cls_names_to_wrap", "auto_wrap_policy")
    assert all(hasattr(plugin, name) for name in (*fields, "mixed_precision_policy", "set_mixed_precision"))
    assert "fsdp_plugin" in parameters_of(AcceleratorState.__init__) and isinstance(PartialState._shared_state, dict)


def test_the_code_in_a_checkpoint_has_all_its_files():
    """transformers finds the files with a pattern for relative imports."""
    from transformers.dynamic_module_utils import get_relative_import_files

    folder = Path(models_file).parent
    models = {name: str(folder / name) for name in ("modeling_dcal.py", "classification_dcal.py", "reid_dcal.py")}
    copied = {Path(file).name for model in models.values() for file in get_relative_import_files(model)}
    assert copied | set(models) == {file.name for file in folder.glob("*_dcal.py")}
