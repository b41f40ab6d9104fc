"""One interface over encoders that name their parts differently: an adapter per family, bound to its backbone.

A DCAL model never calls the backbone's own `forward`. It embeds the image, runs the blocks one by one (so that the
PWCA branch can join at any of them) and applies the final norm, all with the backbone's own modules and weights.

To add a family, write a file `<family>_dcal.py` with a subclass of [`EncoderAdapter`], and give it an entry in
`families_dcal.ADAPTERS`:

1. Its blocks must hand keyword arguments on to the attention, and the attention to the function that
   `attn_implementation` names, with `(query, key, value)` of all tokens. Where they do not, derive classes that do
   (`timm_dcal`, `eva_dcal`); parameters must keep their names.
2. Implement the abstract members. Override what the family does otherwise (positions by rotation: `rotary`, `rotate`).
3. Add a tiny configuration to `tests/conftest.py`: the tests that every encoder must pass run with it. Add a row to
   "Backbones" in the README.
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
    """Where one family of encoders keeps the parts that DCAL needs. The defaults hold for most families.

    Attributes:
        eager_attention (`Callable`): The family's own function behind `attn_implementation="eager"`.
        positions (`str`, *optional*): Name in the state dict of the positions that are added to the tokens.
        antialias (`bool`): Whether the family smooths position embeddings when it shrinks them.
        has_cls (`bool`): Whether the first token is CLS; without one there is no GLCA.
        has_pooler (`bool`): Whether the backbone has a pooler unless its constructor is told.
        rollout_reads_weights (`bool`): Whether `flow` needs weights of a block.

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
        """Around a new encoder, without a pooler, attending through DCAL, with positions and stochastic depth."""
        pooler = {"add_pooling_layer": False} if cls.has_pooler else {}
        # A copy: the attention implementation is a field of the configuration, and this one is the backbone's alone.
        config = copy.deepcopy(config)
        if hasattr(config, "drop_path_rate"):
            # Its own would come on top of DCAL's, which every family has.
            config.drop_path_rate = 0.0
        encoder = cls(AutoModel.from_config(config, attn_implementation=ATTENTION_NAME, **pooler))
        encoder.prepare(image_size)
        encoder.add_stochastic_depth(drop_path_rate)
        freeze_mask_token(encoder.backbone.embeddings)
        return encoder

    @classmethod
    def read_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """A configuration as a dictionary, with what transformers' reader of it takes for given."""
        return fields

    @classmethod
    def resized_config(cls, config: PreTrainedConfig, image_size: int | tuple[int, int] | None) -> PreTrainedConfig:
        """A copy for another input size, if given."""
        config = copy.deepcopy(config)
        if image_size is not None:
            config.image_size = image_size if isinstance(image_size, int) else list(image_size)
        return config

    @classmethod
    def num_layers(cls, config: PreTrainedConfig) -> int:
        """L, the number of self-attention blocks."""
        return config.num_hidden_layers

    @classmethod
    def stride(cls, config: PreTrainedConfig) -> tuple[int, int]:
        """Height and width in pixels of a patch of the encoder's output."""
        return as_pair(config.patch_size)

    @classmethod
    def count_prefix_tokens(cls, config: PreTrainedConfig) -> int:
        """Tokens before the patches."""
        return 1

    @property
    def num_prefix_tokens(self) -> int:
        return self.count_prefix_tokens(self.backbone.config)

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """All self-attention blocks, first block first."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The norm of the encoder's output."""

    @abstractmethod
    def attention(self, block: nn.Module) -> nn.Module:
        """A block's attention."""

    @abstractmethod
    def first_norm(self, block: nn.Module) -> nn.Module:
        """The norm before a block's attention."""

    @abstractmethod
    def embed(self, pixel_values: Tensor) -> Tensor:
        """The first block's input: (B, channels, height, width) -> (B, prefix + N, D)."""

    def rotary(self, pixel_values: Tensor) -> tuple[Tensor, ...] | None:
        """What turns queries and keys of the patches, each tensor of shape (N, ...); None where nothing is turned."""
        return None

    def rotate(self, key: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
        """Keys (B, H, prefix + N, d) of which the patches are turned."""
        raise NotImplementedError(f"{type(self).__name__} has rotary positions, but no way to turn keys.")

    def run(self, block: nn.Module, tokens: Tensor, rotary: tuple[Tensor, ...] | None, **kwargs: Any) -> Tensor:
        """One block: (B, N, D) -> (B, N, D); `kwargs` are those of `dcal_attention_forward`."""
        positions = {} if rotary is None else {"position_embeddings": rotary}
        return block(tokens, attention_mask=None, **positions, **kwargs)

    def keys_values(
        self, block: nn.Module, tokens: Tensor, rotary: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens for a block whose queries are only a few: (B, N, D) -> twice (B, H, N, d)."""
        key, value = self.project(self.attention(block), self.first_norm(block)(tokens))
        return (key if rotary is None else self.rotate(key, rotary)), value

    def project(self, attention: nn.Module, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values by a projection each: (B, N, D) -> twice (B, H, N, d)."""
        shape = (*normed.shape[:2], -1, attention.head_dim)
        key, value = (project_memory(layer, normed) for layer in (attention.k_proj, attention.v_proj))
        return key.view(shape).transpose(1, 2), value.view(shape).transpose(1, 2)

    def copy_last_block(self) -> nn.Module:
        """A copy of the last block for queries whose keys and values are always those of other tokens."""
        block = copy.deepcopy(self.blocks[-1])
        attention = self.attention(block)
        attention.k_proj, attention.v_proj = MemoryProjection(attention.k_proj), MemoryProjection(attention.v_proj)
        return block

    def readout(self, tokens: Tensor) -> Tensor:
        """What stands for the image, (B, N, D) -> (B, D)."""
        return tokens[:, 0] if self.has_cls else tokens.mean(dim=1)

    def flow(self, block: nn.Module) -> Callable[..., Tensor]:
        """How the rollout passes through a block, see `cls_rollout`."""
        return attention_flow

    def attend(self, implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """The function behind `attn_implementation`."""
        return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, self.eager_attention)

    def residual(self, block: nn.Module) -> nn.Module:
        """What ends the branch of a block's attention."""
        return self.attention(block)

    def parts(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """A block and what else, outside of it, runs with it."""
        return (block,)

    def prepare(self, image_size: tuple[int, int]) -> None:
        """Whatever else the new backbone needs."""

    def init_weights(self, module: nn.Module) -> None:
        """Initialises what of a module the backbone's own `_init_weights` leaves as it is."""

    def add_stochastic_depth(self, rate: float) -> None:
        """Drops both residual branches, at a rate that rises linearly from 0 at the first block to `rate` at the
        last."""
        blocks = self.blocks
        for depth, block in enumerate(blocks):
            if rate > 0 and depth > 0:
                for branch in (self.residual(block), block.mlp):
                    branch.register_forward_hook(StochasticDepth(rate * depth / (len(blocks) - 1)))


class MemoryProjection(nn.Linear):
    """The key or value projection of a GLCA block, under the same names: it is for the memory, not for the queries.

    Transformers' attention projects keys and values of its input even where others take their place: of the paper's
    3 % FLOPs on VeRi-776 that would make 4.
    """

    def __init__(self, projection: nn.Linear):
        # Draws nothing: it takes over the parameters, and transformers' mark that they have been initialised.
        nn.Module.__init__(self)
        vars(self).update(vars(projection))

    def forward(self, hidden_states: Tensor, of_memory: bool = False) -> Tensor:
        # An argument, not a method: hooks that fetch offloaded weights run where a module is called.
        if of_memory:
            return super().forward(hidden_states)
        return hidden_states.new_zeros(()).expand(*hidden_states.shape[:-1], self.out_features)


def project_memory(layer: nn.Module, normed: Tensor) -> Tensor:
    """A linear layer, (B, N, D) -> (B, N, D)."""
    return layer(normed, of_memory=True) if isinstance(layer, MemoryProjection) else layer(normed)


def freeze_mask_token(embeddings: nn.Module) -> None:
    """No loss ever reaches it: as a parameter it would make DistributedDataParallel wait for its gradient."""
    mask_token = getattr(embeddings, "mask_token", None)
    if mask_token is not None:
        del embeddings.mask_token
        embeddings.register_buffer("mask_token", mask_token.detach())


__all__ = ["EncoderAdapter", "MemoryProjection"]
