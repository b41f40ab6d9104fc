"""A common interface to encoders whose modules have different names: one adapter class per family.

A DCAL model never calls the backbone's own `forward`. It embeds the image, runs the blocks one by one (so that the
PWCA branch can join at any of them) and applies the final norm, all with the backbone's own modules and weights.

To add a family from your own code, write a subclass of [`EncoderAdapter`] and pass it to `dcal_hf.register_encoder`;
steps 1 and 2 below apply. To add one here, write a file `<family>_dcal.py` with the subclass, and add it to
`families_dcal.ADAPTERS`:

1. Its blocks must pass keyword arguments to the attention, and the attention must pass them to the function that
   `attn_implementation` names, with `(query, key, value)` of all tokens. If they do not, derive classes that do
   (`timm_dcal`, `eva_dcal`). Parameters must keep their names.
2. Implement the abstract members. Override the defaults that do not hold (`rotary` and `rotate` for rotary positions).
3. Add a tiny configuration to `tests/conftest.py`, which runs the tests common to all encoders. Add a row to
   "Supported encoders" in the README.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_dcal import ATTENTION_NAME, attention_flow
from .positions_dcal import as_pair
from .stochastic_depth_dcal import StochasticDepth


class EncoderAdapter(ABC):
    """Gives access to the modules of a family of encoders that DCAL needs. The defaults hold for most families.

    Attributes:
        eager_attention (`Callable`): The family's function for `attn_implementation="eager"`.
        positions (`str`, *optional*): Name of the position embeddings in the state dict, if they are added to tokens.
        antialias (`bool`): Whether the family applies antialiasing when it downsamples position embeddings.
        has_cls (`bool`): Whether the first token is CLS, which GLCA requires.
        has_pooler (`bool`): Whether the backbone has a pooler by default; DCAL builds it without.
        rollout_reads_weights (`bool`): Whether `flow` uses parameters of a block.

    Args:
        backbone (`PreTrainedModel`): The plain encoder.
    """

    eager_attention: Callable[..., tuple[Tensor, Tensor | None]]
    positions: str | None = None
    antialias: bool = False
    has_cls: bool = True
    has_pooler: bool = False
    rollout_reads_weights: bool = False

    def __init__(self, backbone: PreTrainedModel):
        self.backbone = backbone

    @classmethod
    def build(
        cls, config: PreTrainedConfig, image_size: tuple[int, int], drop_path_rate: float = 0.0
    ) -> "EncoderAdapter":
        """Builds a new encoder without a pooler, with DCAL's attention function and stochastic depth."""
        pooler = {"add_pooling_layer": False} if cls.has_pooler else {}
        # A copy, because the configuration holds the attention implementation, which is set for the backbone only.
        config = copy.deepcopy(config)
        if hasattr(config, "drop_path_rate"):
            # The family's stochastic depth would be applied in addition to DCAL's.
            config.drop_path_rate = 0.0
        encoder = cls(AutoModel.from_config(config, attn_implementation=ATTENTION_NAME, **pooler))
        encoder.prepare(image_size)
        encoder.add_stochastic_depth(drop_path_rate)
        freeze_mask_token(encoder.backbone.embeddings)
        return encoder

    @classmethod
    def read_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Adds the fields that transformers requires to read a configuration from a dictionary."""
        return fields

    @classmethod
    def resized_config(cls, config: PreTrainedConfig, image_size: int | tuple[int, int] | None) -> PreTrainedConfig:
        """Copies a configuration and sets its input size, if given."""
        config = copy.deepcopy(config)
        if image_size is not None:
            config.image_size = image_size if isinstance(image_size, int) else list(as_pair(image_size))
        return config

    @classmethod
    def num_layers(cls, config: PreTrainedConfig) -> int:
        """L, the number of self-attention blocks."""
        return config.num_hidden_layers

    @classmethod
    def stride(cls, config: PreTrainedConfig) -> tuple[int, int]:
        """Height and width in pixels of an output patch."""
        return as_pair(config.patch_size)

    @classmethod
    def count_prefix_tokens(cls, config: PreTrainedConfig) -> int:
        """The number of tokens before the patches."""
        return 1

    @property
    def num_prefix_tokens(self) -> int:
        """The number of tokens before the patches."""
        return self.count_prefix_tokens(self.backbone.config)

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """All self-attention blocks, from first to last."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The norm that is applied to the output of the last block."""

    @abstractmethod
    def attention(self, block: nn.Module) -> nn.Module:
        """The attention module of a block."""

    @abstractmethod
    def first_norm(self, block: nn.Module) -> nn.Module:
        """The norm before the attention of a block."""

    @abstractmethod
    def embed(self, pixel_values: Tensor) -> Tensor:
        """Computes the input of the first block: (B, channels, height, width) -> (B, prefix + N, D)."""

    def rotary(self, pixel_values: Tensor) -> tuple[Tensor, ...] | None:
        """Rotary position embeddings of the patches, each of shape (N, ...); None if the family has none."""
        return None

    def rotate(self, key: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
        """Applies rotary positions to the patches' keys, (B, H, prefix + N, d)."""
        raise NotImplementedError(f"{type(self).__name__} has rotary positions, but does not implement rotate.")

    def run(self, block: nn.Module, tokens: Tensor, rotary: tuple[Tensor, ...] | None, **kwargs: Any) -> Tensor:
        """Runs a block, (B, N, D) -> (B, N, D); `kwargs` are those of `dcal_attention_forward`."""
        positions = {} if rotary is None else {"position_embeddings": rotary}
        return block(tokens, attention_mask=None, **positions, **kwargs)

    def keys_values(
        self, block: nn.Module, tokens: Tensor, rotary: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, for a block run on only some queries: (B, N, D) -> twice (B, H, N, d)."""
        key, value = self.project(self.attention(block), self.first_norm(block)(tokens))
        return (key if rotary is None else self.rotate(key, rotary)), value

    def project(self, attention: nn.Module, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Projects normed tokens to keys and values: (B, N, D) -> twice (B, H, N, d)."""
        shape = (*normed.shape[:2], -1, attention.head_dim)
        key, value = (project_memory(layer, normed) for layer in (attention.k_proj, attention.v_proj))
        return key.view(shape).transpose(1, 2), value.view(shape).transpose(1, 2)

    def copy_last_block(self) -> nn.Module:
        """Copies the last block for GLCA, whose keys and values are always passed as `memory`."""
        block = copy.deepcopy(self.blocks[-1])
        attention = self.attention(block)
        attention.k_proj, attention.v_proj = MemoryProjection(attention.k_proj), MemoryProjection(attention.v_proj)
        return block

    def readout(self, tokens: Tensor) -> Tensor:
        """The image feature, CLS or the mean of the tokens: (B, N, D) -> (B, D)."""
        return tokens[:, 0] if self.has_cls else tokens.mean(dim=1)

    def flow(self, block: nn.Module) -> Callable[..., Tensor]:
        """The function that propagates the rollout through a block, see `cls_rollout`."""
        return attention_flow

    def attend(self, implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """The attention function for a value of `attn_implementation`."""
        return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, self.eager_attention)

    def residual(self, block: nn.Module) -> nn.Module:
        """The module that outputs a block's attention branch, to which stochastic depth applies."""
        return self.attention(block)

    def parts(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """A block and the modules outside it that run with it."""
        return (block,)

    def prepare(self, image_size: tuple[int, int]) -> None:
        """Modifies a new backbone where its family needs it."""

    def init_weights(self, module: nn.Module) -> None:
        """Initialises parameters that the backbone's `_init_weights` does not."""

    def add_stochastic_depth(self, rate: float) -> None:
        """Adds stochastic depth to both residual branches; the rate increases linearly from 0 at the first block to
        `rate` at the last."""
        blocks = self.blocks
        for depth, block in enumerate(blocks):
            if rate > 0 and depth > 0:
                for branch in (self.residual(block), block.mlp):
                    branch.register_forward_hook(StochasticDepth(rate * depth / (len(blocks) - 1)))


class MemoryProjection(nn.Linear):
    """The key or value projection of a GLCA block, with the same parameter names; it projects only the memory.

    transformers' attention projects keys and values of its input even if `memory` replaces them. This would raise the
    overhead on VeRi-776 from the paper's 3 % of the FLOPs to 4 %.
    """

    def __init__(self, projection: nn.Linear):
        # Reuses the parameters and transformers' flag that they are initialised, and draws no random numbers.
        nn.Module.__init__(self)
        vars(self).update(vars(projection))

    def forward(self, hidden_states: Tensor, of_memory: bool = False) -> Tensor:
        # An argument, not a method: the hooks that load offloaded weights run only when a module is called.
        if of_memory:
            return super().forward(hidden_states)
        return hidden_states.new_zeros(()).expand(*hidden_states.shape[:-1], self.out_features)


def project_memory(layer: nn.Module, normed: Tensor) -> Tensor:
    """Applies a key or value projection, (B, N, D) -> (B, N, D)."""
    return layer(normed, of_memory=True) if isinstance(layer, MemoryProjection) else layer(normed)


def freeze_mask_token(embeddings: nn.Module) -> None:
    """Makes the mask token a buffer. It gets no gradient, and DistributedDataParallel would wait for one."""
    mask_token = getattr(embeddings, "mask_token", None)
    if mask_token is not None:
        del embeddings.mask_token
        embeddings.register_buffer("mask_token", mask_token.detach())


__all__ = ["EncoderAdapter", "MemoryProjection"]
