"""DCAL models: Dual Cross-Attention Learning on any transformers ViT (https://huggingface.co/papers/2205.02151)."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import can_return_tuple, logging

from .attention_dcal import ATTENTION_NAME, Record, cls_attention, cls_rollout, cls_similarity, top_patches
from .configuration_dcal import DCALConfig
from .families_dcal import find_adapter
from .glca_dcal import GLCA
from .inputs_dcal import check_computes_weights, check_images, check_pairs, paired_images
from .loading_dcal import (
    NEW_PARTS,
    check_complete,
    check_encoder,
    check_finite,
    check_sizes,
    match_log_variances,
    naming,
    naming_encoder,
    read_encoder_config,
    read_index,
)
from .loss_dcal import UncertaintyWeights
from .neck_dcal import join_embeddings, make_necks
from .outputs_dcal import DCALModelOutput
from .positions_dcal import patch_grid, resize_positions


logger = logging.get_logger(__name__)


class DCALPreTrainedModel(PreTrainedModel):
    """Base class of the DCAL models: loading, saving and weight initialisation."""

    config: DCALConfig
    config_class = DCALConfig
    base_model_prefix = "dcal"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    model_tags = ["dcal"]
    # Defaults that `from_backbone` passes to `DCALConfig`.
    config_defaults: dict[str, Any] = {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # GLCA's blocks are of the backbone's type: only the backbone can initialise all of their parameters, such as
        # layer scale.
        self.base_model.backbone._init_weights(module)
        self.base_model.encoder.init_weights(module)
        if isinstance(module, UncertaintyWeights):
            init.constant_(module.log_vars, module.initial_log_var)

    def get_input_embeddings(self) -> nn.Module | None:
        return self.base_model.backbone.get_input_embeddings()

    def set_attn_implementation(self, attn_implementation: str | dict, *args: Any, **kwargs: Any) -> None:
        """Sets the attention implementation of both branches; the backbone keeps calling DCAL's attention function."""
        chosen = attn_implementation if isinstance(attn_implementation, dict) else {"": attn_implementation}
        # The backbone holds a copy of this configuration. No module uses the original: transformers would only warn.
        kept = {"backbone_config": self.config.backbone_config._attn_implementation}
        super().set_attn_implementation({**chosen, **kept}, *args, **kwargs)
        self.base_model.backbone.config._attn_implementation = ATTENTION_NAME

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """As in transformers, with `use_reentrant=False` unless given.

        Raises:
            ValueError: If `use_reentrant=True` and the encoder has a CLS token.
        """
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        # The keys and values that reach a block as `memory` are computed outside of it, and a reentrant checkpoint
        # would backpropagate through their graph twice.
        if options["use_reentrant"] and self.base_model.encoder.has_cls:
            raise ValueError(
                "Activation checkpointing with use_reentrant=True does not support keys and values from outside a "
                "block, which GLCA and PWCA use: leave use_reentrant out."
            )
        super().activation_checkpointing_enable(options, *args, **kwargs)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Saves the weights, the configuration and the code that `trust_remote_code=True` needs to load them."""
        self.config.auto_map = {"AutoModel": "modeling_dcal.DCALModel"}
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Same as in transformers, but reads only safetensors, and raises an error for missing or non-finite tensors.

        With `branches`, `loss_weighting`, `neck`, `num_glca_blocks` or `output_loading_info`, missing tensors are
        newly initialised. So are all log-variances if the checkpoint has other branches.

        Raises:
            ValueError: If tensors of the checkpoint are missing, damaged or not finite; the message names them.
        """
        source = str(pretrained_model_name_or_path)
        options = {"output_loading_info": True, "use_safetensors": True, **kwargs, "ignore_mismatched_sizes": True}
        with naming(source):
            read_index(source)
            model, info = super().from_pretrained(source, *args, **options)
            if not kwargs.get("ignore_mismatched_sizes"):
                check_sizes(info)
            match_log_variances(model, source, kwargs)
        if not (output_loading_info or NEW_PARTS & set(kwargs)):
            check_complete(model, source, info)
        check_finite(model, source)
        return (model, info) if output_loading_info else model

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedConfig,
        image_size: int | tuple[int, int] | None = None,
        *,
        pretrained_kwargs: dict[str, Any] | None = None,
        **config_kwargs: Any,
    ) -> "DCALPreTrainedModel":
        """Builds a DCAL model from a plain encoder.

        Args:
            backbone (`str`, `Path` or `PreTrainedConfig`):
                Hub ID or folder of a checkpoint, whose weights are loaded, or a configuration for random weights.
            image_size (`int` or `(height, width)`, *optional*):
                Input size in pixels. The position embeddings are resized to it once.
            pretrained_kwargs (`dict`, *optional*):
                Arguments of the backbone's `from_pretrained`: `cache_dir`, `revision`, `token`, ... `dtype` is
                float32 by default for every checkpoint, because weights in half precision do not train well.
            config_kwargs:
                Fields of `DCALConfig`, `num_labels`, `id2label`, `attn_implementation`, ... Without `num_labels` and
                `id2label`, the checkpoint's labels are kept.

        Raises:
            TypeError: If `backbone` is a model.
            ValueError: If the type of the backbone is not supported, the configuration is invalid, or tensors of the
                checkpoint are missing, damaged or not finite; the message names them.
        """
        if not isinstance(backbone, str | Path | PreTrainedConfig):
            raise TypeError(
                "from_backbone takes the Hub ID, folder or configuration of an encoder, not "
                f"{type(backbone).__name__}: save a model with save_pretrained, and pass the folder."
            )
        config_kwargs = {**cls.config_defaults, **config_kwargs}
        pretrained_kwargs = {"dtype": torch.float32, **(pretrained_kwargs or {})}
        is_config = isinstance(backbone, PreTrainedConfig)
        source_config = backbone if is_config else read_encoder_config(str(backbone), pretrained_kwargs)
        if source_config.model_type == "dcal":
            raise ValueError(f"'{backbone}' is a DCAL checkpoint already: load it with from_pretrained.")
        if not {"num_labels", "id2label"} & set(config_kwargs):
            config_kwargs.update(id2label=source_config.id2label, label2id=source_config.label2id)
        # A two-tower checkpoint (CLIP) contributes its image encoder.
        source_config = copy.deepcopy(getattr(source_config, "vision_config", source_config))
        with nullcontext() if is_config else naming_encoder(str(backbone)):
            resized = find_adapter(source_config).resized_config(source_config, image_size)
        config = DCALConfig(backbone_config=resized, image_size=image_size, **config_kwargs)
        source = None
        if not is_config:
            with naming(str(backbone)):
                read_index(str(backbone))
                source, info = AutoModel.from_pretrained(
                    backbone, config=source_config, output_loading_info=True, **pretrained_kwargs
                )
            check_encoder(source, str(backbone), info)
        model = cls(config)
        model.base_model.start_from(source, source_config)
        dtype = pretrained_kwargs["dtype"]
        # A name, such as "auto", has been resolved by transformers.
        return model.to(source.dtype if isinstance(dtype, str) and source is not None else dtype)


class DCALModel(DCALPreTrainedModel):
    """A ViT encoder with GLCA and PWCA branches that outputs embeddings.

    `AutoModel.from_pretrained` loads it from any DCAL checkpoint.
    """

    _keys_to_ignore_on_load_unexpected = [r"classifiers?\.", r"^loss_weights\."]

    def __init__(self, config: DCALConfig):
        # It may have been changed since it was created.
        config.validate_dcal()
        super().__init__(config)
        self.encoder = config.adapter.build(config.backbone_config, config.image_size, config.drop_path_rate)
        self.backbone = self.encoder.backbone
        # Copies of the last block, including its stochastic depth.
        self.glca = GLCA(config, self.encoder) if "glca" in config.branches else None
        self.necks = make_necks(config) if config.neck else None
        self.post_init()

    @torch.no_grad()
    def start_from(self, source: PreTrainedModel | None, source_config: PreTrainedConfig) -> None:
        """Loads a plain encoder's weights, resizes its position embeddings and copies its last block to GLCA."""
        if source is not None:
            state = {name: value for name, value in source.state_dict().items() if not name.startswith("pooler.")}
            name = self.encoder.positions
            if name in state:
                grid = patch_grid(source_config.image_size, source_config.patch_size)
                state[name] = resize_positions(state[name], grid, self.config.grid, self.encoder.antialias)
            self.backbone.load_state_dict(state)
        if self.glca is not None:
            for block in self.glca.blocks:
                block.load_state_dict(self.encoder.blocks[-1].state_dict())

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pairs: Tensor | None = None,
        pair_noise: bool = False,
        output_rollout: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> DCALModelOutput:
        """
        Args:
            pixel_values (`Tensor` of shape `(B, channels, height, width)`)
            pairs (`Tensor` of shape `(P, 2)`, int64, *optional*):
                Each row holds the indices of two images of the batch that distract each other. The PWCA branch runs
                for these images only. A row `[i, i]` is plain self-attention of image i. Values are checked on the CPU
                only, where the check needs no synchronisation.
            pair_noise (`bool`):
                Use Gaussian noise as the distractor's keys and values, for the images in `pairs` or else for all.
            output_rollout (`bool`):
                Return the rollout even if no branch uses it.
            output_hidden_states, output_attentions (`bool`, *optional*):
                Return those of SA; as in the configuration by default. `attentions` needs the eager attention.

        Raises:
            TypeError: If `pixel_values` or `pairs` are not tensors.
            ValueError: If the image size differs from the model's, if `pairs` has an invalid or repeated index, if
                pairs are given and the model has no PWCA branch, or if the attention computes no weights to return.
        """
        keeps_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        keeps_weights = self.config.output_attentions if output_attentions is None else output_attentions
        self.check_inputs(pixel_values, pairs is not None or pair_noise, output_rollout)
        if keeps_weights:
            check_computes_weights(self.config._attn_implementation)
        if pairs is not None:
            check_pairs(pairs, len(pixel_values))
        branches = self.config.branches if self.training else self.config.inference_branches
        recorded = self.recorded_blocks("glca" in branches, output_rollout)
        blocks = range(len(self.encoder.blocks)) if keeps_weights else recorded
        records = {depth: Record(keeps_weights) for depth in blocks}
        states = [] if keeps_states else None
        tokens, pair_tokens, rotary = self.encode(pixel_values, pairs, pair_noise, records, states)
        norm = self.encoder.final_norm
        last_hidden_state = norm(tokens)
        rollout, indices = self.select(last_hidden_state, [records[depth] for depth in recorded], "glca" in branches)
        embeddings = {"sa": self.encoder.readout(last_hidden_state)}
        if "glca" in branches:
            local_tokens = self.glca(tokens, indices, rotary, attend=self.attend)
            embeddings["glca"] = norm(local_tokens).mean(dim=1)
        return DCALModelOutput(
            last_hidden_state=last_hidden_state,
            # In training, a neck here would update its running statistics twice: here and in the loss.
            pooler_output=join_embeddings(embeddings, None if self.training else self.necks, self.config),
            sa_embedding=embeddings["sa"],
            glca_embedding=embeddings.get("glca"),
            pwca_embedding=None if pair_tokens is None else self.encoder.readout(norm(pair_tokens)),
            rollout=rollout,
            local_query_indices=indices,
            hidden_states=tuple(states) if keeps_states else None,
            attentions=tuple(record.weights for record in records.values()) if keeps_weights else None,
        )

    @property
    def attend(self) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """The attention implementation that the user chose, for both branches."""
        return self.encoder.attend(self.config._attn_implementation)

    def check_inputs(self, pixel_values: Tensor, has_pair: bool, output_rollout: bool) -> None:
        """Raises a `ValueError` if the model cannot take these inputs."""
        check_images(pixel_values, tuple(self.config.image_size))
        if has_pair and not self.config.uses_pwca:
            raise ValueError(
                f"A pair was given, but the model has no PWCA branch (branches={self.config.branches}, "
                f"num_pwca_blocks={self.config.num_pwca_blocks})."
            )
        if self.training and self.config.uses_pwca and not has_pair and not torch.compiler.is_compiling():
            logger.warning_once(
                "PWCA does not run, because the training batch has no `pairs`. Use DCALTrainer, which adds them; the "
                "Trainer of transformers does not, and it cannot load the best checkpoint."
            )
        if output_rollout and not self.encoder.has_cls:
            raise ValueError("The encoder has no CLS token, which the rollout needs: set output_rollout=False.")
        if self.backbone.config._attn_implementation != ATTENTION_NAME:
            raise ValueError(
                f"The backbone uses the attention '{self.backbone.config._attn_implementation}', which ignores pairs: "
                "call set_attn_implementation on the DCAL model, not on its backbone."
            )

    def recorded_blocks(self, runs_glca: bool, output_rollout: bool) -> range:
        """The blocks whose queries and keys the patch selection needs."""
        num_blocks = len(self.encoder.blocks)
        selects = runs_glca and self.config.reads_local_queries
        if output_rollout or (selects and self.config.local_query_selection == "rollout"):
            return range(num_blocks)
        if selects and self.config.local_query_selection == "last_layer":
            return range(num_blocks - 1, num_blocks)
        return range(0)

    def encode(
        self,
        pixel_values: Tensor,
        pairs: Tensor | None,
        pair_noise: bool,
        records: dict[int, Record],
        kept_states: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...] | None]:
        """Runs both branches in one pass over the blocks; returns SA's tokens (B, N, D) and PWCA's (2P, N, D).

        The paired images join the batch at block L - T; in earlier blocks they are equal to SA's. If the encoder has a
        CLS token, each branch runs the last block separately: PWCA needs only its CLS output, (2P, 1, D).
        `kept_states`, if given, receives SA's input of the first block and its output of each block.
        """
        hidden_states = self.encoder.embed(pixel_values)
        rotary = self.encoder.rotary(pixel_values)
        batch_size, attend = hidden_states.shape[0], self.attend
        paired = paired_images(pairs, pair_noise, hidden_states)
        blocks = self.encoder.blocks
        keep = (lambda state: None) if kept_states is None else kept_states.append
        num_shared = len(blocks) - 1 if self.encoder.has_cls else len(blocks)
        first = len(blocks) if paired is None else len(blocks) - self.config.num_pwca_blocks
        for depth, block in enumerate(blocks[:num_shared]):
            keep(hidden_states[:batch_size])
            if depth == first:
                hidden_states = torch.cat([hidden_states, hidden_states.index_select(0, paired)])
            kwargs = {"attend": attend, "record": records.get(depth), "pair_noise": pair_noise}
            num_paired = hidden_states.shape[0] - batch_size
            hidden_states = self.encoder.run(block, hidden_states, rotary, num_paired=num_paired, **kwargs)
        tokens, pair_tokens = hidden_states[:batch_size], None
        if paired is not None:
            pair_tokens = hidden_states[batch_size:] if first < num_shared else tokens.index_select(0, paired)
        keep(tokens)
        for depth, block in enumerate(blocks[num_shared:], start=num_shared):
            if paired is not None:
                pair_tokens = self.run_last_block_for_pairs(block, pair_tokens, rotary, attend, pair_noise)
            tokens = self.encoder.run(block, tokens, rotary, attend=attend, record=records.get(depth))
            keep(tokens)
        return tokens, pair_tokens, rotary

    def run_last_block_for_pairs(
        self,
        block: nn.Module,
        tokens: Tensor,
        rotary: tuple[Tensor, ...] | None,
        attend: Callable[..., tuple[Tensor, Tensor | None]],
        pair_noise: bool,
    ) -> Tensor:
        """Runs the last block for PWCA, (2P, N, D) -> (2P, 1, D): PWCA needs only its CLS output."""
        memory = self.encoder.keys_values(block, tokens, rotary)
        # Rotary positions apply to patches only, not to prefix tokens.
        no_positions = rotary and tuple(x[:0] for x in rotary)
        pair = {"num_paired": len(tokens), "pair_noise": pair_noise}
        return self.encoder.run(block, tokens[:, :1], no_positions, attend=attend, memory=memory, **pair)

    def select(
        self, tokens: Tensor, records: list[Record], runs_glca: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Returns the patch rollout (B, N) if every block was recorded, and the selected patches (B, R) if used.

        Args:
            tokens (`Tensor` of shape `(B, prefix + N, D)`): Output of the encoder after the final norm.
        """
        queries, keys = ([getattr(record, name) for record in records] for name in ("query", "key"))
        rollout, indices, prefix = None, None, self.encoder.num_prefix_tokens
        blocks = self.encoder.blocks
        if len(records) == len(blocks):
            flows = [self.encoder.flow(block) for block in blocks]
            rollout = cls_rollout(queries, keys, queries[0].size(-1) ** -0.5, flows)[:, prefix:]
        if runs_glca and self.config.reads_local_queries:
            selection = self.config.local_query_selection
            if selection == "rollout":
                scores = rollout
            elif selection == "last_layer":
                scores = cls_attention(queries[-1], keys[-1], queries[-1].size(-1) ** -0.5)[:, prefix:]
            elif selection == "similarity":
                scores = cls_similarity(tokens, prefix)
            else:
                scores = torch.rand(tokens.size(0), tokens.size(1) - prefix, device=tokens.device)
            indices = top_patches(scores, self.config.num_local_queries)
        return rollout, indices


__all__ = ["DCALModel", "DCALModelOutput", "DCALPreTrainedModel"]
