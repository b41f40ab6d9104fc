"""Plain encoders of transformers and timm with the weights of a DCAL model: an independent truth for its outputs."""

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from dcal_hf import DCALForImageClassification


def plain_encoder(model: DCALForImageClassification, implementation: str) -> PreTrainedModel:
    config = model.config.backbone_config
    pooler = {"add_pooling_layer": False} if config.model_type in ("vit", "deit", "swin") else {}
    plain = AutoModel.from_config(config, attn_implementation=implementation, **pooler).eval()
    plain.load_state_dict(model.dcal.backbone.state_dict())
    return plain


def plain_maps(model: DCALForImageClassification, pixel_values: Tensor) -> list[Tensor]:
    """Head means of a plain encoder's attention maps. For timm, which returns none, they are captured by hooks."""
    plain = plain_encoder(model, "eager")
    if model.config.backbone_config.model_type != "timm_wrapper":
        return [attention.mean(1) for attention in plain(pixel_values, output_attentions=True).attentions]
    if hasattr(plain.timm_model, "blocks_token_only"):
        return cait_maps(plain, pixel_values)
    maps = []
    for block in plain.timm_model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda module, args: maps.append(args[0].mean(1)))
    plain(pixel_values)
    return maps


def cait_maps(plain: PreTrainedModel, pixel_values: Tensor) -> list[Tensor]:
    """Maps over [CLS, patches]: the softmax over patches for talking heads, the CLS row for class attention."""
    maps = []

    def add_map(rows: slice, columns: slice, weights: Tensor) -> None:
        tokens = 1 + plain.timm_model.pos_embed.size(1)
        whole = torch.eye(tokens).repeat(len(weights), 1, 1)
        whole[:, rows, columns] = weights.mean(1)
        maps.append(whole)

    patches, cls, both = slice(1, None), slice(0, 1), slice(None)
    for block in plain.timm_model.blocks:
        block.attn.proj_l.register_forward_hook(
            lambda module, args, logits: add_map(patches, patches, logits.permute(0, 3, 1, 2).softmax(-1))
        )
    for block in plain.timm_model.blocks_token_only:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda module, args: add_map(cls, both, args[0]))
    plain(pixel_values)
    return maps


def plain_tokens(plain: PreTrainedModel, pixel_values: Tensor, **kwargs) -> Tensor:
    """Tokens of a plain encoder after the final norm, which CLIP applies in its pooler."""
    tokens = plain(pixel_values, **kwargs).last_hidden_state
    return plain.post_layernorm(tokens) if plain.config.model_type == "clip_vision_model" else tokens


def plain_states(plain: PreTrainedModel, pixel_values: Tensor) -> list[Tensor]:
    """Hidden states of a plain encoder. For timm, whose first one transformers omits, hooks capture them."""
    if plain.config.model_type != "timm_wrapper":
        return plain(pixel_values, output_hidden_states=True).hidden_states
    states, blocks = [], plain.timm_model.blocks
    blocks[0].register_forward_pre_hook(lambda module, args: states.append(args[0]))
    for block in [*blocks, *getattr(plain.timm_model, "blocks_token_only", ())]:
        block.register_forward_hook(lambda module, args, output: states.append(output))
    plain(pixel_values)
    return states
