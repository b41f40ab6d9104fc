"""DCAL model configuration."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .encoder_dcal import EncoderAdapter
from .families_dcal import find_adapter, read_fields
from .positions_dcal import as_pair


BRANCHES = ("sa", "glca", "pwca")
INFERENCE_BRANCHES = ("sa", "glca")


@strict
class DCALConfig(PreTrainedConfig):
    r"""
    Configuration of a ViT encoder with Dual Cross-Attention Learning (https://huggingface.co/papers/2205.02151).

    The numbers in brackets are the paper's choice; where the paper is silent the field says so.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the plain encoder; a default `ViTConfig` if not given.
        image_size (`int` or `(height, width)`, *optional*):
            Input size in pixels, a multiple of the patch size, for Swin of its last stage's; the backbone's own if not
            given.
        branches (`tuple` of `"sa"`, `"glca"`, `"pwca"`):
            The branches that are trained (all; Table 3 ablates them). Swin takes `("sa", "pwca")`.
        inference_branches (`tuple` of `"sa"`, `"glca"`, *optional*):
            The branches that are run in evaluation mode: those of the two that are trained, if not given. PWCA has no
            weights of its own: a model trained with `"pwca"` can be read through `"sa"`.
        num_glca_blocks (`int`):
            M, the number of GLCA blocks (1).
        num_pwca_blocks (`int`, *optional*):
            T, the number of last self-attention blocks that have a PWCA twin; all L of them if not given (all).
        local_query_ratio (`float`):
            R, the share of patches whose queries GLCA keeps (0.1 for fine-grained classes, 0.3 for Re-ID).
        local_query_selection (`str`):
            `"rollout"` (attention rollout), `"last_layer"` (CLS attention of the last block alone), `"similarity"`
            (cosine with CLS in the encoder's output, not in the paper: nothing is recorded for it) or `"random"`.
        glca_scope (`str`):
            What local queries attend to: `"global"` (all tokens) or `"local"` (the selected ones only).
        glca_readout (`str`):
            `"local"`, the mean of the selected queries' outputs, or `"cls"`, the output of the CLS query. The paper
            reads CLS, but then the selection changes nothing; see "Readings of the paper" in the README.
        drop_path_rate (`float`):
            Stochastic depth of the last block; it rises linearly from 0 at the first. It takes the place of whatever
            `backbone_config` asks for.
        neck (`bool`):
            Whether embeddings have a BatchNorm neck, as `DCALForReID` needs.
        neck_feature (`str`):
            Whether embeddings are taken `"before"` the neck (TransReID) or `"after"` it.
        normalize_embeddings (`bool`):
            Whether embeddings have length 1.
        initial_log_var (`float`):
            Where the log-variances that weight the branch losses start (not in the paper).
    """

    model_type = "dcal"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")}
    # So a Trainer's predictions are the logits alone, as everybody's `argmax` expects.
    keys_to_ignore_at_inference = [
        "losses",
        "sa_logits",
        "glca_logits",
        "pwca_logits",
        "embeddings",
        "rollout",
        "local_query_indices",
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
    glca_readout: str = "local"
    drop_path_rate: float | int = 0.0
    initial_log_var: float | int = 0.0
    neck: bool = False
    neck_feature: str = "before"
    normalize_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict):
            self.backbone_config = read_fields(self.backbone_config)
        super().__post_init__(**kwargs)
        self.branches = tuple(self.branches)
        if self.inference_branches is None:
            self.inference_branches = tuple(self.classified_branches)
        self.inference_branches = tuple(self.inference_branches)
        if self.num_pwca_blocks is None:
            self.num_pwca_blocks = self.num_layers
        self.image_size = as_pair(self.backbone_config.image_size if self.image_size is None else self.image_size)
        # Before `strict` does: its own exception is no ValueError.
        for validator in self.__class_validators__:
            validator(self)

    @property
    def adapter(self) -> type[EncoderAdapter]:
        """The family of the backbone."""
        return find_adapter(self.backbone_config)

    @property
    def num_layers(self) -> int:
        """L, the number of self-attention blocks of the backbone, in all its stages."""
        return self.adapter.num_layers(self.backbone_config)

    @property
    def has_cls(self) -> bool:
        """Whether the encoder has a CLS token, without which there is neither rollout nor GLCA."""
        return self.adapter.has_cls

    @property
    def stride(self) -> tuple[int, int]:
        """Height and width in pixels of a patch of the encoder's output, of the last stage if there are several."""
        return self.adapter.stride(self.backbone_config)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches, of the first stage if there are several."""
        patch_height, patch_width = as_pair(self.backbone_config.patch_size)
        return self.image_size[0] // patch_height, self.image_size[1] // patch_width

    @property
    def num_local_queries(self) -> int:
        """How many patches R keeps: rounded down, at least one."""
        rows, columns = self.grid
        # 0.29 of 100 is 29, though as a binary number 0.29 is a little less.
        return max(1, int(round(self.local_query_ratio * rows * columns, 9)))

    @property
    def reads_local_queries(self) -> bool:
        """Whether the choice of patches can change the output; with `cls` over global tokens it cannot."""
        return "local" in (self.glca_readout, self.glca_scope)

    @property
    def classified_branches(self) -> list[str]:
        """The branches that have a classifier of their own, to be trained: PWCA shares SA's."""
        has_head = {"sa": {"sa", "pwca"} & set(self.branches), "glca": {"glca"} & set(self.branches)}
        return [name for name in INFERENCE_BRANCHES if has_head[name]]

    @property
    def uses_pwca(self) -> bool:
        """Whether training needs pairs of images."""
        return "pwca" in self.branches and self.num_pwca_blocks > 0

    def validate_image_size(self):
        if any(size < patch or size % patch for size, patch in zip(self.image_size, self.stride)):
            stage = "" if self.stride == as_pair(self.backbone_config.patch_size) else " in its last stage"
            raise ValueError(
                f"image_size={tuple(self.image_size)} must be a multiple of the backbone's patch size {self.stride}"
                f"{stage}."
            )

    def validate_branches(self):
        if not self.branches or len(set(self.branches)) < len(self.branches) or set(self.branches) - set(BRANCHES):
            raise ValueError(f"branches={self.branches} must name one or more of {BRANCHES}, each once.")
        if "glca" in self.branches and not self.has_cls:
            raise ValueError(
                f"branches={self.branches} must leave 'glca' out: a backbone of type "
                f"'{self.backbone_config.model_type}' has no CLS token from which a rollout could select patches; use "
                "branches=('sa', 'pwca')."
            )
        readable = INFERENCE_BRANCHES if "glca" in self.branches else ("sa",)
        if set(self.branches) == {"glca"}:
            readable = ("glca",)
        if not self.inference_branches or set(self.inference_branches) - set(readable):
            raise ValueError(
                f"inference_branches={self.inference_branches} must name one or more of {readable}: the branches that "
                f"have a classifier when branches={self.branches} are trained."
            )

    def validate_blocks(self):
        if not 0 <= self.num_pwca_blocks <= self.num_layers:
            raise ValueError(
                f"num_pwca_blocks={self.num_pwca_blocks} must lie between 0 and the backbone's {self.num_layers} "
                "blocks."
            )
        if self.num_glca_blocks < 1:
            raise ValueError(
                f"num_glca_blocks={self.num_glca_blocks} must be at least 1; leave 'glca' out of branches to train "
                "without GLCA."
            )

    def validate_ratios(self):
        if not 0 < self.local_query_ratio <= 1:
            raise ValueError(f"local_query_ratio={self.local_query_ratio} must be above 0 and at most 1.")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must be at least 0 and below 1.")

    def validate_switches(self):
        switches = {
            "local_query_selection": ("rollout", "last_layer", "similarity", "random"),
            "glca_scope": ("global", "local"),
            "glca_readout": ("local", "cls"),
            "neck_feature": ("before", "after") if self.neck else ("before",),
        }
        for name, choices in switches.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}='{getattr(self, name)}' is unknown; choose one of {', '.join(choices)}.")


__all__ = ["DCALConfig"]
