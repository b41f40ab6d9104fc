"""Restricts the arguments that a configuration can pass to timm, because a checkpoint's config.json is untrusted.

timm's constructor also accepts sources of weights and reads them while it builds the model: files, which it may
unpickle, URLs, and folders given as the architecture's name.
"""

import re

from transformers import PreTrainedConfig


# Sizes and switches of VisionTransformer, Cait and Eva.
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
    """Checks that a configuration passes only the name of an architecture, sizes and switches to timm.

    Raises:
        ValueError: If the name is a path or URL, or if an argument is not in `MODEL_ARGS`.
    """
    if not re.fullmatch(r"[\w.-]+", config.architecture):
        raise ValueError(
            f"'{config.architecture}' is not the name of a timm architecture: a name has only letters, digits, '_', "
            "'-' and '.', and a path or URL is not allowed."
        )
    unknown = sorted(set(config.model_args or {}) - MODEL_ARGS)
    if unknown:
        raise ValueError(
            f"model_args of timm's '{config.architecture}' contain '{unknown[0]}', which is not a supported size or "
            "switch: remove it. Weights are read only from the checkpoint."
        )


__all__ = ["MODEL_ARGS", "check_timm_args"]
