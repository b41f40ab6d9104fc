"""The attention of DCAL as pure functions: pair-wise attention, the CLS rollout and the selection of local queries.

Paper: Dual Cross-Attention Learning, CVPR 2022, sections 3.1 to 3.3 (https://huggingface.co/papers/2205.02151).
Shapes: B images, H heads, N tokens (prefix tokens such as CLS first, then patches), head width d.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import AttentionInterface


ATTENTION_NAME = "dcal"
# Softmax rows that the rollout computes at a time: enough to use all cores, few enough to stay in the cache.
ROLLOUT_CHUNK = 128


class Record:
    """What a block's SA branch computed, written for the caller to read: queries and keys, each (B, H, N, d).

    With `keeps_weights`, also the attention weights, (B, H, N, N), with which the gradient flows. Not a mapping: FSDP
    and accelerate's offloading pass copies of mappings to a block.
    """

    query: Tensor
    key: Tensor
    weights: Tensor

    def __init__(self, keeps_weights: bool = False):
        self.keeps_weights = keeps_weights


def dcal_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    num_paired: int = 0,
    windows: int = 1,
    pair_noise: bool = False,
    memory: tuple[Tensor, Tensor] | None = None,
    record: Record | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The attention function of a DCAL backbone.

    It selects the keys and values that the queries attend to; `attend` computes the attention.

    Args:
        query, key, value (`Tensor` of shape `(B, H, N, d)`):
            The SA branch, followed by the PWCA branch.
        attention_mask (`Tensor` that broadcasts to `(B, H, N, N)`, *optional*):
            Added to the logits: a mask or a relative position bias. It applies to the distractor's keys as it does to
            the image's own.
        attend (`Callable`):
            The attention implementation that the user chose (eager, sdpa, flash attention).
        num_paired (`int`):
            How many of the B items belong to the PWCA branch, with the two images of a pair adjacent.
        windows (`int`):
            The number of windows per image. Each attends to the same window of the other image.
        pair_noise (`bool`):
            Use standard Gaussian noise as the distractor's keys and values (an ablation of the paper).
        memory (`tuple` of two `Tensor` of shape `(B, H, M, d)`, *optional*):
            Keys and values that replace the module's own: the global tokens of GLCA.
        record (`Record`, *optional*):
            Receives what the SA branch computes. Recomputation in activation checkpointing overwrites it.
    """
    single = query.shape[0] - num_paired
    if record is not None:
        record.query, record.key = query[:single].detach(), key[:single].detach()
    if memory is not None:
        key, value = memory
    self_mask, pair_mask = split_mask(attention_mask, single)
    outputs = []
    if single > 0:
        own = (x[:single] for x in (query, key, value))
        output, weights = attend(module, *own, self_mask, is_causal=False, **kwargs)
        outputs.append(output)
        if record is not None and record.keeps_weights:
            record.weights = weights
    if num_paired > 0:
        paired = [x[single:] for x in (query, key, value)]
        paired = append_noise(*paired, pair_mask) if pair_noise else concatenate_partners(*paired, pair_mask, windows)
        output = attend(module, *paired, is_causal=False, **kwargs)[0]
        outputs.append(output if pair_noise else split_pairs(output, windows))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs), None


AttentionInterface.register(ATTENTION_NAME, dcal_attention_forward)


def split_mask(attention_mask: Tensor | None, single: int) -> tuple[Tensor | None, Tensor | None]:
    """Splits a mask into SA's and PWCA's rows; a mask of one row, (1, H, N, N), applies to both."""
    if attention_mask is None or attention_mask.shape[0] == 1:
        return attention_mask, attention_mask
    return attention_mask[:single], attention_mask[single:]


def concatenate_partners(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, windows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Concatenates the tokens of each pair.

    Pair-wise attention, `softmax(Q_1 [K_1;K_2]^T) [V_1;V_2]` and the same for Q_2 (paper, section 3.3), equals
    self-attention over the tokens of both images: `softmax([Q_1;Q_2] [K_1;K_2]^T) [V_1;V_2]`.
    """
    if attention_mask is not None:
        rows = attention_mask
        rows = torch.cat([rows, rows], dim=2) if len(rows) == 1 else join_pairs(rows, windows)
        attention_mask = torch.cat([rows, rows], dim=3)
    query, key, value = (join_pairs(x, windows) for x in (query, key, value))
    return query, key, value, attention_mask


def join_pairs(x: Tensor, windows: int = 1) -> Tensor:
    """Concatenates the tokens of a pair, (2 P W, H, N, d) -> (P W, H, 2 N, d) with W windows per image.

    With one window and the memory layout of a projection, (B, N, H, d), the result is a view.
    """
    return x.unflatten(0, (-1, 2, windows)).permute(0, 2, 3, 1, 4, 5).flatten(3, 4).flatten(0, 1)


def split_pairs(x: Tensor, windows: int = 1) -> Tensor:
    """Splits the output of a pair into its two images, (P W, 2 N, H, d) -> (2 P W, N, H, d)."""
    return x.unflatten(1, (2, -1)).unflatten(0, (-1, windows)).transpose(1, 2).flatten(0, 2)


def append_noise(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Appends as many keys and values of Gaussian noise to an image's own, (B, H, N, d) -> (B, H, 2 N, d)."""
    if attention_mask is not None:
        attention_mask = torch.cat([attention_mask, attention_mask], dim=3)
    key, value = (torch.cat([x, torch.randn_like(x)], dim=2) for x in (key, value))
    return query, key, value, attention_mask


@torch.no_grad()
def cls_rollout(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    scaling: float,
    flows: Sequence[Callable[[Tensor, Tensor, Tensor, float], Tensor]] | None = None,
) -> Tensor:
    """The CLS row of the attention rollout, without computing an N x N product.

    With `S_i` the head mean of block i's softmax, the rollout is `Shat = Sbar_L ... Sbar_1`, `Sbar = 0.5 S + 0.5 I`.
    Its CLS row is a vector propagated from the last block to the first: `v <- e_0`, `v <- 0.5 v + 0.5 v S_i`.

    Args:
        queries, keys (one `Tensor` of shape `(B, H, N, d)` per block, first block first)
        scaling (`float`): The factor of the logits, `1 / sqrt(d)`.
        flows (one `Callable` per block, *optional*): `v, Q_i, K_i, scaling -> v S_i`; defaults to `attention_flow`.

    Returns:
        `Tensor` of shape `(B, N)` in float32: the contribution of each input token to CLS; rows sum to one.
    """
    flow = cls_attention(queries[-1], keys[-1], scaling)
    flow[:, 0] += 1.0
    flow *= 0.5
    flows = [attention_flow] * len(queries) if flows is None else flows
    for propagate, query, key in zip(reversed(flows[:-1]), reversed(queries[:-1]), reversed(keys[:-1])):
        flow = 0.5 * flow + 0.5 * propagate(flow, query, key, scaling)
    return flow


@torch.no_grad()
def cls_similarity(tokens: Tensor, num_prefix: int) -> Tensor:
    """Cosine similarity of each output patch token with CLS, (B, prefix + N, D) -> (B, N), in float32."""
    cls, patches = tokens[:, :1].float(), tokens[:, num_prefix:].float()
    return nn.functional.cosine_similarity(cls, patches, dim=2)


@torch.no_grad()
def cls_attention(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Head mean of the CLS row of one block's attention, (B, H, N, d) -> (B, N)."""
    ones = torch.ones(query.size(0), 1, device=query.device)
    return attention_flow(ones, query[:, :, :1], key, scaling)


def attention_flow(flow: Tensor, query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """`mean_h(v softmax(s Q_h K_h^T))` in float32, computed in chunks of rows: (B, M), (B, H, M, d) -> (B, N)."""
    with torch.autocast(query.device.type, enabled=False):
        # A compiled or exported graph must not fix the batch size, as a split into images would.
        if query.device.type != "cpu" or torch.compiler.is_compiling():
            return batch_flow(flow.float(), query.float(), key.float() * scaling)
        # One image at a time on the CPU, so that a chunk fits the cache.
        parts = zip(*(x.float().split(1) for x in (flow, query, key)))
        return torch.cat([batch_flow(part, rows, columns * scaling) for part, rows, columns in parts])


def batch_flow(flow: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """`mean_h(v softmax(Q_h K_h^T))`: (B, M), (B, H, M, d), (B, H, N, d) -> (B, N)."""
    (batch, heads), key = key.shape[:2], key.flatten(0, 1).transpose(1, 2)
    result = key.new_zeros(batch * heads, 1, key.size(2))
    weights = flow[:, None].expand(-1, heads, -1).flatten(0, 1)[:, None]
    chunks = zip(weights.split(ROLLOUT_CHUNK, dim=2), query.flatten(0, 1).split(ROLLOUT_CHUNK, dim=1))
    for weight, rows in chunks:
        result = torch.baddbmm(result, weight, torch.bmm(rows, key).softmax(dim=-1))
    return result.view(batch, heads, -1).mean(dim=1)


def top_patches(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores, highest first: (B, patches) -> (B, count) int64, without gradient."""
    return scores.topk(count, dim=1).indices


def gather_tokens(hidden_states: Tensor, index: Tensor) -> Tensor:
    """Gathers tokens by index, (B, N, D) and (B, R) -> (B, R, D)."""
    return hidden_states.gather(1, index[..., None].expand(-1, -1, hidden_states.size(-1)))


__all__ = ["ROLLOUT_CHUNK", "cls_rollout", "dcal_attention_forward", "top_patches"]
