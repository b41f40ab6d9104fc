"""The options passed to FSDP; `test_distributed.py` tests the training."""

import pytest
from accelerate.utils import FullyShardedDataParallelPlugin

from dcal_hf import DCALForImageClassification
from dcal_hf.training.sharding import shard_by_blocks

from helpers import is_cait


def test_sharding_by_blocks(backbone_config):
    if is_cait(backbone_config):
        pytest.skip("CaiT is not sharded.")
    model = DCALForImageClassification.from_backbone(backbone_config, num_labels=3)
    shard_by_blocks(model, FullyShardedDataParallelPlugin(fsdp_version=2))
    sharded = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    assert sharded == [*model.dcal.encoder.blocks, *model.dcal.glca.blocks]


def test_cait_cannot_be_sharded(backbone_configs):
    model = DCALForImageClassification.from_backbone(backbone_configs["timm_cait"], num_labels=3)
    with pytest.raises(ValueError, match="does not shard CaiT"):
        shard_by_blocks(model, FullyShardedDataParallelPlugin(fsdp_version=2))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fsdp_version": 1}, "FSDP2, not FSDP1"),
        ({"fsdp_version": 2, "activation_checkpointing": True}, "samples new stochastic depth and noise"),
        ({"fsdp_version": 2, "auto_wrap_policy": "size_based_wrap"}, "DCAL is sharded by blocks"),
        ({"fsdp_version": 2, "transformer_cls_names_to_wrap": ["ViTEmbeddings"]}, "to ViTLayer, or leave it out"),
    ],
)
def test_unsupported_options_raise_clear_errors(vit_config, options, sentence):
    model = DCALForImageClassification.from_backbone(vit_config, num_labels=3)
    with pytest.raises(ValueError, match=sentence):
        shard_by_blocks(model, FullyShardedDataParallelPlugin(**options))
