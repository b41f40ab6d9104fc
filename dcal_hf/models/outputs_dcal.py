"""The output of the base model."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class DCALModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`Tensor` of shape `(B, prefix + N, D)`): Output of the encoder after the final norm.
        pooler_output (`Tensor` of shape `(B, branches * D)`): The embedding: SA's CLS token (the mean of the tokens if
            there is no CLS token) and GLCA's readout, in the order of `config.inference_branches`. In evaluation mode
            it is taken after the neck if `config.neck_feature="after"`. Also available as `embeddings`.
        sa_embedding, glca_embedding (`Tensor` of shape `(B, D)`): Embedding of the branch; None if it did not run.
        pwca_embedding (`Tensor` of shape `(2P, D)`): In the order of `pairs.flatten()`; None without pairs.
        rollout (`Tensor` of shape `(B, N)`): CLS row of the attention rollout, over the patches.
        local_query_indices (`Tensor` of shape `(B, R)`): Indices of the selected patches, highest score first.
        hidden_states (`tuple` of L + 1 `Tensor` of shape `(B, prefix + N, D)`): SA's input of the first block, and the
            output of each block, before the final norm: those of the plain encoder (of Swin, after each block).
        attentions (`tuple` of L `Tensor` of shape `(B, H, N, N)`): SA's attention weights of each block.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    sa_embedding: Tensor | None = None
    glca_embedding: Tensor | None = None
    pwca_embedding: Tensor | None = None
    rollout: Tensor | None = None
    local_query_indices: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def embeddings(self) -> Tensor:
        """The embedding of each image: `pooler_output`."""
        return self.pooler_output


__all__ = ["DCALModelOutput"]
