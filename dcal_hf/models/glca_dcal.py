"""The global-local cross-attention block of DCAL (https://huggingface.co/papers/2205.02151, section 3.2)."""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .attention_dcal import gather_tokens
from .configuration_dcal import DCALConfig
from .encoder_dcal import Seam, expect_memory, run_block


class GLCA(nn.Module):
    """Global-local cross-attention (paper, section 3.2): blocks of the encoder's own kind whose queries are few.

    `softmax(Q^l K^gT / sqrt(d)) V^g`: only the selected tokens pass through the query and output projections and the
    FFN; keys and values come from all tokens of the encoder's output, or, with `glca_scope="local"`, from the selected
    ones alone. M blocks refine the same queries against the same tokens. The final norm is the encoder's.
    """

    def __init__(self, config: DCALConfig, seam: Seam, backbone: PreTrainedModel):
        super().__init__()
        self.seam = seam
        self.scope = config.glca_scope
        self.readout = config.glca_readout
        self.blocks = nn.ModuleList(
            copy.deepcopy(seam.get_blocks(backbone)[-1]) for _ in range(config.num_glca_blocks)
        )
        for block in self.blocks:
            expect_memory(seam.get_attention(block))

    def forward(
        self, tokens: Tensor, num_prefix: int, indices: Tensor | None, rotary: tuple[Tensor, Tensor] | None, **kwargs
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
            parts.append(gather_tokens(tokens, indices + num_prefix))
        local = torch.cat(parts, dim=1)
        positions = rotary and tuple(x[indices][:, None] if with_patches else x[:0] for x in rotary)

        for block in self.blocks:
            seen, turned = (local, positions) if is_local_scope else (tokens, rotary)
            memory = self.seam.keys_values(block, seen, turned)
            local = run_block(block, local, positions, memory=memory, **kwargs)
        return local[:, :1] if self.readout == "cls" else local[:, int(with_cls):]


__all__ = ["GLCA"]
