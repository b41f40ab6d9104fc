"""Support for FSDP2, which by default gathers the weights of a block only in its `forward`."""

from functools import partial

from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

from ..models.modeling_dcal import DCALModel, DCALPreTrainedModel


def shard_by_blocks(model: DCALPreTrainedModel, plugin: FullyShardedDataParallelPlugin) -> None:
    """Shards the model by encoder blocks, and leaves mixed precision to autocast.

    By default transformers would also shard the embeddings, whose parts DCAL calls one by one, and accelerate would
    round the losses to the precision of the weights.

    Raises:
        ValueError: For FSDP1, for sharding by anything other than blocks, for FSDP's own activation checkpointing, or
            for an encoder whose rollout reads weights.
    """
    dcal = model.base_model
    blocks = {type(block).__name__ for block in dcal.encoder.blocks}
    if plugin.fsdp_version == 1:
        raise ValueError("DCAL supports FSDP2, not FSDP1: set fsdp_config['version'] to 2, or leave it out.")
    if dcal.encoder.rollout_reads_weights:
        raise ValueError(
            "DCAL does not shard CaiT: its rollout mixes heads outside the blocks' forward, where FSDP has not "
            "gathered the weights. Train it with DistributedDataParallel, without fsdp."
        )
    if plugin.activation_checkpointing:
        raise ValueError(
            "FSDP's own activation checkpointing samples new stochastic depth and noise when it recomputes: set "
            "activation_checkpointing in the training arguments instead."
        )
    names = plugin.transformer_cls_names_to_wrap or blocks
    if plugin.auto_wrap_policy is size_based_auto_wrap_policy or set(names) != blocks:
        raise ValueError(
            "DCAL is sharded by blocks: leave out auto_wrap_policy, and set transformer_layer_cls_to_wrap to "
            f"{' and '.join(sorted(blocks))}, or leave it out."
        )
    model._no_split_modules = blocks
    plugin.mixed_precision_policy = None


def connect_shards(model: DCALPreTrainedModel) -> None:
    """Lets a sharded model project keys and values, and restores its class name for saving."""
    dcal: DCALModel = model.base_model
    for block in [dcal.encoder.blocks[-1], *(dcal.glca.blocks if dcal.glca is not None else ())]:
        block.keys_values = partial(dcal.encoder.keys_values, block)
        # FSDP gathers the weights before this method as before `forward`.
        register_fsdp_forward_method(block, "keys_values")
    dcal.encoder.keys_values = keys_values_by_block
    # A checkpoint refers to its code by class and module. FSDP derives a class from the model's own; use its names.
    sharded, own = type(model), type(model).__bases__[-1]
    sharded.__name__, sharded.__module__ = own.__name__, own.__module__


def keys_values_by_block(
    block: nn.Module, tokens: Tensor, rotary: tuple[Tensor, ...] | None
) -> tuple[Tensor, Tensor]:
    """[`EncoderAdapter.keys_values`] as a method of the block, so that FSDP gathers the weights first."""
    return block.keys_values(tokens, rotary)


__all__ = ["connect_shards", "shard_by_blocks"]
