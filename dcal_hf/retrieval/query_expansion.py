"""Query expansion: search with the mean of a query and its nearest gallery items."""

import numpy as np
import torch

from ..metrics.distances import ROWS_PER_PRODUCT, FeatureDistances, as_tensor


def expand_queries(
    query: np.ndarray | torch.Tensor, gallery: np.ndarray | torch.Tensor, k: int, alpha: float = 0.0
) -> torch.Tensor:
    """Replaces each query by the mean of itself and its `k` nearest gallery items.

    Average query expansion, Chum et al., ICCV 2007; weighted by similarity, Radenović et al.,
    https://arxiv.org/abs/1711.02512, section 3.3. A search does not know which items the evaluation protocol ignores
    for a query, so those are included. Ties are broken arbitrarily.

    Args:
        query (`np.ndarray` or `torch.Tensor` of shape `(queries, dim)`):
            The features of the queries.
        gallery (`np.ndarray` or `torch.Tensor` of shape `(gallery items, dim)`):
            The features of the gallery.
        k (`int`):
            Number of items, the nearest by cosine similarity.
        alpha (`float`, *optional*, defaults to 0.0):
            Exponent of the weight of an item, which is its cosine similarity clipped at 0; 0 gives the plain mean. The
            query has weight 1.

    Returns:
        `torch.Tensor` of shape `(queries, dim)`: the expanded queries, each with the norm of the original query.

    Raises:
        ValueError: If `k` is not from 1 to the number of gallery items, `alpha` is negative, or the features are
            invalid.
    """
    query, gallery = as_tensor(query), as_tensor(gallery)
    if not 1 <= k <= len(gallery) or alpha < 0:
        raise ValueError(
            f"Query expansion takes from 1 to {len(gallery)} gallery items, and an alpha of at least 0, got {k=} and "
            f"{alpha=}."
        )
    distances = FeatureDistances(query, gallery, "cosine")
    expanded = torch.empty_like(query)
    for start in range(0, len(query), ROWS_PER_PRODUCT):
        part = query[start:start + ROWS_PER_PRODUCT]
        rows = distances.rows(np.arange(start, start + len(part)))
        nearest, items = torch.from_numpy(rows).to(query.device).topk(k, largest=False)
        weights = (1 - nearest).clamp(min=0) ** alpha
        means = part + (weights[..., None] * gallery[items]).sum(dim=1)
        expanded[start:start + len(part)] = torch.nn.functional.normalize(means) * part.norm(dim=1, keepdim=True)
    return expanded


__all__ = ["expand_queries"]
