"""The attention of DCAL as pure functions: pair-wise attention, the CLS rollout, the choice of local queries.

Paper: Dual Cross-Attention Learning, CVPR 2022, sections 3.1 to 3.3 (https://huggingface.co/papers/2205.02151).
Shapes: B images, H heads, N tokens (prefix tokens such as CLS first, then patches), head width d.
"""

from collections.abc import Callable, MutableMapping, Sequence

import torch
from torch import Tensor, nn
from transformers import AttentionInterface


ATTENTION_NAME = "dcal"
# Rows of one softmax that are alive at a time in the rollout: enough to fill the cores, small enough for the cache.
ROLLOUT_CHUNK = 128


def dcal_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    pair_index: Tensor | None = None,
    pair_noise: bool = False,
    memory: tuple[Tensor, Tensor] | None = None,
    record: MutableMapping[str, Tensor] | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """The attention function that a DCAL backbone is registered with.

    It only decides which keys and values the queries meet; `attend` does the arithmetic.

    Args:
        query, key, value (`Tensor` of shape `(B, H, N, d)`):
            With a pair, B is twice the batch: the SA branch first, the PWCA branch behind it.
        attention_mask (`Tensor` that broadcasts to `(B, H, N, N)`, *optional*):
            Added to the logits: a mask, a bias of relative positions. It holds for the distractor's keys as for the
            image's own.
        attend (`Callable`):
            The implementation the user chose (eager, sdpa, flash attention).
        pair_index (`Tensor` of shape `(B / 2,)`, *optional*):
            Image i is distracted by image `pair_index[i]`.
        pair_noise (`bool`):
            The distractor's keys and values are standard Gaussian noise (an ablation of the paper).
        memory (`tuple` of two `Tensor` of shape `(B, H, M, d)`, *optional*):
            Keys and values that take the place of the module's own: the global tokens of GLCA.
        record (`MutableMapping`, *optional*):
            Receives the SA branch's `"query"` and `"key"`. Written by name, so that a recomputation (activation
            checkpointing) overwrites what the first pass wrote.
    """
    paired = pair_noise or pair_index is not None
    single = query.size(0) // 2 if paired else query.size(0)
    if record is not None:
        record["query"], record["key"] = query[:single].detach(), key[:single].detach()
    if memory is not None:
        key, value = memory
    if not paired:
        return attend(module, query, key, value, attention_mask, is_causal=False, **kwargs)

    self_mask, pair_mask = split_mask(attention_mask, single)
    self_attention, _ = attend(
        module, query[:single], key[:single], value[:single], self_mask, is_causal=False, **kwargs
    )
    pair_key, pair_value = (with_distractor(x[single:], pair_index, pair_noise) for x in (key, value))
    pair_attention, _ = attend(module, query[single:], pair_key, pair_value, pair_mask, is_causal=False, **kwargs)
    return torch.cat([self_attention, pair_attention]), None


AttentionInterface.register(ATTENTION_NAME, dcal_attention_forward)


def split_mask(attention_mask: Tensor | None, single: int) -> tuple[Tensor | None, Tensor | None]:
    """The masks of the two branches, (2B or 1, H, N, N) -> (B or 1, H, N, N) and (B or 1, H, N, 2N)."""
    if attention_mask is None:
        return None, None
    is_shared = attention_mask.size(0) == 1
    self_mask, pair_mask = (attention_mask, attention_mask) if is_shared else attention_mask.split(single)
    return self_mask, torch.cat([pair_mask, pair_mask], dim=-1)


def with_distractor(x: Tensor, pair_index: Tensor | None, noise: bool) -> Tensor:
    """`[x_1; x_2]` along the tokens, (B, H, N, d) -> (B, H, 2N, d): one softmax will run over both images."""
    if noise:
        return torch.cat([x, torch.randn_like(x)], dim=2)
    # One gather of whole images, as projections lay them out, (B, N, H, d), instead of a gather and a copy.
    images = torch.stack([torch.arange(len(x), device=x.device), pair_index], dim=1).flatten()
    pairs = x.transpose(1, 2).index_select(0, images)
    return pairs.unflatten(0, (-1, 2)).flatten(1, 2).transpose(1, 2)


@torch.no_grad()
def cls_rollout(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    scaling: float,
    flows: Sequence[Callable[[Tensor, Tensor, Tensor, float], Tensor]] | None = None,
) -> Tensor:
    """Row 0 of the attention rollout, without ever forming an N x N product.

    With `S_i` the head mean of block i's softmax, the rollout is `Shat = Sbar_L ... Sbar_1`, `Sbar = 0.5 S + 0.5 I`.
    Its CLS row is a vector that is carried from the last block to the first: `v <- e_0`, `v <- 0.5 v + 0.5 v S_i`.

    Args:
        queries, keys (one `Tensor` of shape `(B, H, N, d)` per block, first block first)
        scaling (`float`): The factor of the logits, `1 / sqrt(d)`.
        flows (one `Callable` per block, *optional*): `v, Q_i, K_i, scaling -> v S_i`; `attention_flow` if not given.

    Returns:
        `Tensor` of shape `(B, N)` in float32: how much CLS has drawn from each input token; rows sum to one.
    """
    flow = cls_attention(queries[-1], keys[-1], scaling)
    flow[:, 0] += 1.0
    flow *= 0.5
    flows = [attention_flow] * len(queries) if flows is None else flows
    for through, query, key in zip(reversed(flows[:-1]), reversed(queries[:-1]), reversed(keys[:-1])):
        flow = 0.5 * flow + 0.5 * through(flow, query, key, scaling)
    return flow


@torch.no_grad()
def cls_attention(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Head mean of the CLS row of one block's attention, (B, H, N, d) -> (B, N)."""
    ones = torch.ones(query.size(0), 1, device=query.device)
    return attention_flow(ones, query[:, :, :1], key, scaling)


def attention_flow(flow: Tensor, query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """`mean_h(v softmax(s Q_h K_h^T))` in float32, a chunk of rows at a time: (B, M), (B, H, M, d) -> (B, N)."""
    with torch.autocast(query.device.type, enabled=False):
        # On a CPU an image at a time, so that a chunk stays in the cache; a traced graph must not know the batch.
        one_by_one = query.device.type == "cpu" and not torch.compiler.is_compiling()
        images = 1 if one_by_one else len(query)
        parts = zip(*(x.float().split(images) for x in (flow, query, key)))
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
    """The `count` best patches, best first: (B, patches) -> (B, count) int64. Selection carries no gradient."""
    return scores.topk(count, dim=1).indices


def gather_tokens(hidden_states: Tensor, index: Tensor) -> Tensor:
    """Tokens by position, (B, N, D) and (B, R) -> (B, R, D)."""
    return hidden_states.gather(1, index[..., None].expand(-1, -1, hidden_states.size(-1)))


__all__ = ["cls_rollout", "dcal_attention_forward"]
