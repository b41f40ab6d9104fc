"""What a configuration may ask of timm's constructor: a checkpoint's config.json is a stranger's.

The constructor also takes places to read weights from, and reads them while it builds: files, which it may unpickle,
addresses, and folders by the architecture's name.
"""

import re

from transformers import PreTrainedConfig


# Of VisionTransformer, Cait and Eva: sizes and switches.
MODEL_ARGS = frozenset(
    """
    act_layer attn_drop_rate attn_only_layer_scale class_token depth depth_token_only drop_path_rate drop_rate
    dynamic_img_pad dynamic_img_size embed_dim fc_norm final_norm fix_init global_pool img_size in_chans init_values
    mlp_ratio mlp_ratio_token_only no_embed_class norm_layer num_classes num_heads num_kv_heads num_reg_tokens
    patch_drop_rate patch_size pool_include_prefix pos_drop_rate pos_embed pre_norm proj_bias proj_drop_rate qk_norm
    qkv_bias qkv_fused ref_feat_shape reg_tokens rope_grid_indexing rope_grid_offset rope_jitter_coords
    rope_rescale_coords rope_rotate_half rope_shift_coords rope_temperature rope_type scale_attn_inner
    scale_attn_norm scale_mlp scale_mlp_norm swiglu_align_to swiglu_mlp use_abs_pos_emb use_fc_norm
    use_post_norm use_post_transformer_norm use_pre_transformer_norm use_rot_pos_emb weight_init
    """.split()
)


def check_timm_args(config: PreTrainedConfig) -> None:
    """
    Raises:
        ValueError: If a configuration asks timm for anything but an architecture by its name, with other sizes and
            switches.
    """
    if not re.fullmatch(r"[\w.-]+", config.architecture):
        raise ValueError(
            f"'{config.architecture}' is no name of an architecture of timm: it must have letters, digits, '_', '-' "
            "and '.' alone, and be no path and no address."
        )
    unknown = sorted(set(config.model_args or {}) - MODEL_ARGS)
    if unknown:
        raise ValueError(
            f"model_args of timm's '{config.architecture}' name '{unknown[0]}', which is no size or switch of an "
            "architecture that DCAL knows: leave it out. Weights are read from the checkpoint alone."
        )


__all__ = ["MODEL_ARGS", "check_timm_args"]
