"""The global-local cross-attention block of DCAL (https://huggingface.co/papers/2205.02151, section 3.2)."""

from typing import Any

import torch
from torch import Tensor, nn

from .attention_dcal import gather_tokens
from .configuration_dcal import DCALConfig
from .encoder_dcal import EncoderAdapter


class GLCA(nn.Module):
    """Global-local cross-attention (paper, section 3.2) with blocks of the encoder's type.

    `softmax(Q^l K^gT / sqrt(d)) V^g`: only the selected tokens pass through the query and output projections and the
    FFN. Keys and values come from all output tokens of the encoder or, with `glca_scope="local"`, from the selected
    ones only. All M blocks attend to the same tokens. The final norm is the encoder's and is applied by the caller.
    """

    def __init__(self, config: DCALConfig, encoder: EncoderAdapter):
        super().__init__()
        self.encoder = encoder
        self.scope = config.glca_scope
        self.readout = config.glca_readout
        self.blocks = nn.ModuleList(encoder.copy_last_block() for _ in range(config.num_glca_blocks))

    def forward(
        self, tokens: Tensor, indices: Tensor | None, rotary: tuple[Tensor, ...] | None, **kwargs: Any
    ) -> Tensor:
        """Tokens (B, prefix + N, D) and selected patches (B, R) -> the tokens to read out (B, R or 1, D).

        Queries do not attend to each other, so queries that the readout ignores are not computed: CLS with `local`,
        the patches with `cls`. With `glca_scope="local"` they also serve as keys and values and are kept.
        """
        is_local_scope = self.scope == "local"
        with_cls = is_local_scope or self.readout == "cls"
        with_patches = is_local_scope or self.readout == "local"

        parts = [tokens[:, :1]] if with_cls else []
        if with_patches:
            parts.append(gather_tokens(tokens, indices + self.encoder.num_prefix_tokens))
        local = torch.cat(parts, dim=1)
        positions = rotary and tuple(x[indices][:, None] if with_patches else x[:0] for x in rotary)

        for block in self.blocks:
            memory_tokens, memory_positions = (local, positions) if is_local_scope else (tokens, rotary)
            memory = self.encoder.keys_values(block, memory_tokens, memory_positions)
            local = self.encoder.run(block, local, positions, memory=memory, **kwargs)
        return local[:, :1] if self.readout == "cls" else local[:, int(with_cls):]


__all__ = ["GLCA"]
