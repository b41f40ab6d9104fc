"""The values that a DCAL configuration accepts. Each check raises a `ValueError` that says what to change."""

from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from math import pi

from transformers import PreTrainedConfig

from .positions_dcal import as_pair


BRANCHES = ("sa", "glca", "pwca")
INFERENCE_BRANCHES = ("sa", "glca")
# Far above any real encoder, because a configuration with billions of blocks would exhaust the memory.
MAX_BLOCKS = 1_000


def check_image_size(config: PreTrainedConfig) -> None:
    """The image size must be a multiple of the patch size."""
    if any(size < patch or size % patch for size, patch in zip(config.image_size, config.stride)):
        stage = "" if config.stride == as_pair(config.backbone_config.patch_size) else " in its last stage"
        raise ValueError(
            f"image_size={tuple(config.image_size)} must be a multiple of the backbone's patch size {config.stride}"
            f"{stage}."
        )


def check_branches(config: PreTrainedConfig) -> None:
    """The branches must exist, fit the backbone, and those of inference have a classifier."""
    if not config.branches or len(set(config.branches)) < len(config.branches) or set(config.branches) - set(BRANCHES):
        raise ValueError(f"branches={config.branches} must name one or more of {BRANCHES}, each once.")
    if "glca" in config.branches and not config.has_cls:
        raise ValueError(
            f"branches={config.branches} cannot include 'glca': a backbone of type "
            f"'{config.backbone_config.model_type}' has no CLS token, which the patch selection needs; use "
            "branches=('sa', 'pwca')."
        )
    readable = INFERENCE_BRANCHES if "glca" in config.branches else ("sa",)
    if set(config.branches) == {"glca"}:
        readable = ("glca",)
    read = config.inference_branches
    if not read or len(set(read)) < len(read) or set(read) - set(readable):
        raise ValueError(
            f"inference_branches={read} must name one or more of {readable}, each once: the branches that have a "
            f"classifier when branches={config.branches} are trained."
        )


def check_blocks(config: PreTrainedConfig) -> None:
    """The numbers of blocks must be within those of the backbone, and below `MAX_BLOCKS`."""
    if max(config.num_layers, config.num_glca_blocks) > MAX_BLOCKS:
        raise ValueError(
            f"The backbone's {config.num_layers} blocks and num_glca_blocks={config.num_glca_blocks} must be at most "
            f"{MAX_BLOCKS}."
        )
    if not 0 <= config.num_pwca_blocks <= config.num_layers:
        raise ValueError(
            f"num_pwca_blocks={config.num_pwca_blocks} must be between 0 and the backbone's {config.num_layers} "
            "blocks."
        )
    if config.num_glca_blocks < 1:
        raise ValueError(
            f"num_glca_blocks={config.num_glca_blocks} must be at least 1; leave 'glca' out of branches to train "
            "without GLCA."
        )


def check_ratios(config: PreTrainedConfig) -> None:
    """Ratios, rates and the numbers of ArcFace must be in range."""
    if not 0 < config.local_query_ratio <= 1:
        raise ValueError(f"local_query_ratio={config.local_query_ratio} must be above 0 and at most 1.")
    if not 0 <= config.drop_path_rate < 1:
        raise ValueError(f"drop_path_rate={config.drop_path_rate} must be at least 0 and below 1.")
    if config.arcface_subcenters < 1 or config.arcface_scale <= 0 or not 0 <= config.arcface_margin < pi / 2:
        raise ValueError(
            f"arcface_subcenters={config.arcface_subcenters} must be at least 1, arcface_scale={config.arcface_scale} "
            f"above 0, and arcface_margin={config.arcface_margin} at least 0 and below pi / 2."
        )


def check_switches(config: PreTrainedConfig) -> None:
    """Each switch must have one of its choices."""
    switches = {
        "local_query_selection": ("rollout", "last_layer", "similarity", "random"),
        "glca_scope": ("global", "local"),
        "glca_readout": ("local", "cls"),
        "loss_weighting": ("uncertainty", "equal"),
        "neck_feature": ("before", "after"),
        "identity_loss": ("cross_entropy", "arcface"),
    }
    for name, choices in switches.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{name}='{getattr(config, name)}' is unknown; choose one of {', '.join(choices)}.")
    for name, choice in {"neck_feature": "after", "identity_loss": "arcface"}.items():
        if getattr(config, name) == choice and not config.neck:
            raise ValueError(f"{name}='{choice}' needs a neck: set neck=True, as DCALForReID does.")
    if config.loss_weighting == "equal" and config.initial_log_var != 0:
        raise ValueError(
            f"initial_log_var={config.initial_log_var} has no effect with loss_weighting='equal', which has no "
            "log-variances: leave it out."
        )


def check_known(config: PreTrainedConfig, names: Iterable[str]) -> None:
    """Unknown fields must be neither misspelt nor fields of the backbone: they would have no effect."""
    own = [field.name for field in fields(config)]
    for name in names:
        # Private names, such as `_name_or_path`, are transformers' own.
        if hasattr(type(config), name) or name.startswith("_"):
            continue
        if alike := get_close_matches(name, own, n=1, cutoff=0.8):
            raise ValueError(f"DCALConfig has no field '{name}', but '{alike[0]}'.")
        if name in config.backbone_config.to_dict():
            raise ValueError(f"DCALConfig has no field '{name}', but the encoder has: set it in backbone_config.")


def check_resizing(config: PreTrainedConfig, saved_size: int | list[int] | None) -> None:
    """The image size of a checkpoint can be changed only if none of its weights depends on it."""
    if saved_size is not None and config.adapter.positions is not None and config.image_size != as_pair(saved_size):
        raise ValueError(
            f"image_size={config.image_size} cannot replace the checkpoint's {as_pair(saved_size)}, for which its "
            "position embeddings were made"
        )


CHECKS = (check_image_size, check_branches, check_blocks, check_ratios, check_switches)


__all__ = ["BRANCHES", "CHECKS", "INFERENCE_BRANCHES", "check_known", "check_resizing"]
