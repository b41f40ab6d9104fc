"""DCAL model configuration."""

import os
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .encoder_dcal import EncoderAdapter
from .families_dcal import find_adapter, read_fields
from .loading_dcal import naming
from .positions_dcal import as_pair, patch_grid
from .sentence_transformers_dcal import save_for_sentence_transformers
from .validation_dcal import BRANCHES, CHECKS, INFERENCE_BRANCHES, check_known, check_resizing


@strict
class DCALConfig(PreTrainedConfig):
    r"""
    Configuration of a ViT encoder with Dual Cross-Attention Learning (https://huggingface.co/papers/2205.02151).

    Values in brackets are the paper's; fields that the paper does not specify say so.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the plain encoder. Defaults to `ViTConfig()`.
        image_size (`int` or `(height, width)`, *optional*):
            Input size in pixels, a multiple of the patch size (of the last stage's for Swin). Defaults to the
            backbone's image size.
        branches (`tuple` of `"sa"`, `"glca"`, `"pwca"`):
            The branches to train (all; ablated in Table 3). Swin supports `("sa", "pwca")`.
        inference_branches (`tuple` of `"sa"`, `"glca"`, *optional*):
            The branches to run in evaluation mode. Defaults to those of the two that are trained. PWCA has no weights
            of its own: a model trained with `"pwca"` uses `"sa"` at inference.
        num_glca_blocks (`int`):
            M, the number of GLCA blocks (1).
        num_pwca_blocks (`int`, *optional*):
            T, the number of last self-attention blocks that PWCA also runs. Defaults to all L (all).
        local_query_ratio (`float`):
            R, the ratio of patches used as GLCA's queries (0.1 for fine-grained classification, 0.3 for Re-ID).
        local_query_selection (`str`):
            `"rollout"` (attention rollout), `"last_layer"` (CLS attention of the last block only), `"similarity"`
            (cosine with CLS in the encoder's output; not in the paper; records no attention) or `"random"`.
        glca_scope (`str`):
            The tokens that local queries attend to: `"global"` (all) or `"local"` (only the selected ones).
        glca_readout (`str`):
            `"cls"`, the output of the CLS query (the paper's final class token), or `"local"`, the mean of the
            selected queries' outputs. With `"cls"` and the global scope, the selection does not affect the output and
            is not computed; see `recipes/readings.md`.
        drop_path_rate (`float`):
            Stochastic depth rate of the last block; it increases linearly from 0 at the first block. It replaces the
            rate in `backbone_config`.
        neck (`bool`):
            Whether embeddings have a BatchNorm neck, which `DCALForReID` requires.
        neck_feature (`str`):
            Whether embeddings are taken `"before"` (TransReID) or `"after"` the neck.
        normalize_embeddings (`bool`):
            Whether to L2-normalise embeddings.
        identity_loss (`str`):
            Loss of `DCALForReID` beside the triplet loss: `"cross_entropy"` of a linear classifier (TransReID) or
            `"arcface"`, sub-centre ArcFace (Deng et al. 2020; not in the paper).
        arcface_subcenters (`int`), arcface_margin (`float`, radians), arcface_scale (`float`):
            Sub-centres per identity, margin and scale of ArcFace. The defaults are those of its authors.
        loss_weighting (`str`):
            How the branch losses are weighted: `"uncertainty"` (learned log-variances) or `"equal"` (fixed 1 : 1 : 1,
            without log-variances; an ablation that is not in the paper).
        initial_log_var (`float`):
            Initial value of the log-variances that weight the branch losses (not in the paper).
    """

    model_type = "dcal"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")}
    # Trainer then returns only the logits as predictions, as `compute_metrics` functions expect.
    keys_to_ignore_at_inference = [
        "losses",
        "sa_logits",
        "glca_logits",
        "pwca_logits",
        "embeddings",
        "rollout",
        "local_query_indices",
        "hidden_states",
        "attentions",
    ]

    backbone_config: dict | PreTrainedConfig | None = None
    image_size: int | list[int] | tuple[int, ...] | None = None
    branches: list[str] | tuple[str, ...] = BRANCHES
    inference_branches: list[str] | tuple[str, ...] | None = None
    num_glca_blocks: int = 1
    num_pwca_blocks: int | None = None
    local_query_ratio: float | int = 0.1
    local_query_selection: str = "rollout"
    glca_scope: str = "global"
    glca_readout: str = "cls"
    drop_path_rate: float | int = 0.0
    identity_loss: str = "cross_entropy"
    arcface_subcenters: int = 3
    arcface_margin: float | int = 0.5
    arcface_scale: float | int = 64.0
    loss_weighting: str = "uncertainty"
    initial_log_var: float | int = 0.0
    neck: bool = False
    neck_feature: str = "before"
    normalize_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict):
            self.backbone_config = read_fields(self.backbone_config)
        super().__post_init__(**kwargs)
        check_known(self, kwargs)
        self.branches = tuple(self.branches)
        if self.inference_branches is None:
            self.inference_branches = tuple(self.classified_branches)
        self.inference_branches = tuple(self.inference_branches)
        if self.num_pwca_blocks is None:
            self.num_pwca_blocks = self.num_layers
        self.image_size = as_pair(self.backbone_config.image_size if self.image_size is None else self.image_size)
        # Validate before `strict` does, whose exception is not a ValueError.
        for validator in self.__class_validators__:
            validator(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Same as in transformers.

        Raises:
            ValueError: If a field is invalid; the message names the checkpoint.
        """
        with naming(str(pretrained_model_name_or_path)):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """As in transformers, but raises a `ValueError` for a checkpoint of another type of model."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} is a checkpoint of type '{model_type}', not of DCAL: build a DCAL "
                "model with its weights with from_backbone."
            )
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but fields in `kwargs` are checked like those of `config_dict`, and errors name the
        source of the configuration.

        With other `branches`, inference runs those of them that have a classifier, unless `kwargs` say otherwise.
        """
        # `AutoConfig` calls this instead, with the name.
        source = kwargs.get("name_or_path")
        with nullcontext() if source is None else naming(str(source)):
            # transformers would set these on the finished configuration, where nothing checks them.
            own = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
            given = {name: kwargs.pop(name) for name in own - {"backbone_config"} if name in kwargs}
            if "branches" in given and set(given["branches"]) != set(config_dict.get("branches", BRANCHES)):
                config_dict = {**config_dict, "inference_branches": None}
            read = super().from_dict({**config_dict, **given}, **kwargs)
            # With `return_unused_kwargs`, a configuration and a dictionary.
            check_resizing(read[0] if isinstance(read, tuple) else read, config_dict.get("image_size"))
            return read

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, without the name of the backbone's checkpoint, which may be a local path."""
        described = super().to_dict()
        described["backbone_config"].pop("_name_or_path", None)
        return described

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As in transformers; beside a model's configuration it tells sentence-transformers how to read embeddings."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.architectures:
            save_for_sentence_transformers(save_directory)

    @property
    def adapter(self) -> type[EncoderAdapter]:
        """The adapter class of the backbone's family."""
        return find_adapter(self.backbone_config)

    @property
    def num_layers(self) -> int:
        """L, the number of self-attention blocks of the backbone, over all stages."""
        return self.adapter.num_layers(self.backbone_config)

    @property
    def has_cls(self) -> bool:
        """Whether the encoder has a CLS token, which rollout and GLCA require."""
        return self.adapter.has_cls

    @property
    def stride(self) -> tuple[int, int]:
        """Height and width in pixels of an output patch, which is the last stage's if there are several."""
        return self.adapter.stride(self.backbone_config)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches, in the first stage if there are several."""
        return patch_grid(self.image_size, self.backbone_config.patch_size)

    @property
    def num_local_queries(self) -> int:
        """The number of patches that R selects, rounded down and at least one."""
        rows, columns = self.grid
        # Rounded first, because 0.29 * 100 is slightly below 29 in floating point.
        return max(1, int(round(self.local_query_ratio * rows * columns, 9)))

    @property
    def reads_local_queries(self) -> bool:
        """Whether the selected patches affect the output; with `cls` readout and global scope they do not."""
        return "local" in (self.glca_readout, self.glca_scope)

    @property
    def classified_branches(self) -> list[str]:
        """The branches that have their own classifier; PWCA shares SA's."""
        has_head = {"sa": {"sa", "pwca"} & set(self.branches), "glca": {"glca"} & set(self.branches)}
        return [name for name in INFERENCE_BRANCHES if has_head[name]]

    @property
    def uses_pwca(self) -> bool:
        """Whether training uses pairs of images."""
        return "pwca" in self.branches and self.num_pwca_blocks > 0

    def validate_dcal(self) -> None:
        """Runs the checks of `validation_dcal`; transformers calls it for every configuration."""
        for check in CHECKS:
            check(self)


__all__ = ["DCALConfig"]
