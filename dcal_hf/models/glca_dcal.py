"""The global-local cross-attention block of DCAL (https://huggingface.co/papers/2205.02151, section 3.2)."""

from typing import Any

import torch
from torch import Tensor, nn

from .attention_dcal import gather_tokens
from .configuration_dcal import DCALConfig
from .encoder_dcal import EncoderAdapter


class GLCA(nn.Module):
    """Global-local cross-attention (paper, section 3.2): blocks of the encoder's own kind whose queries are few.

    `softmax(Q^l K^gT / sqrt(d)) V^g`: only the selected tokens pass through the query and output projections and the
    FFN; keys and values come from all tokens of the encoder's output, or, with `glca_scope="local"`, from the selected
    ones alone. M blocks refine the same queries against the same tokens. The final norm is the encoder's.
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

        Queries never see each other, so those that the readout does not read are left out: CLS under `local`, the
        patches under `cls`. Under `glca_scope="local"` they are keys and values as well, and stay.
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
            seen, turned = (local, positions) if is_local_scope else (tokens, rotary)
            memory = self.encoder.keys_values(block, seen, turned)
            local = self.encoder.run(block, local, positions, memory=memory, **kwargs)
        return local[:, :1] if self.readout == "cls" else local[:, int(with_cls):]


__all__ = ["GLCA"]
