"""Query expansion: searching with a query and what it finds."""

import numpy as np
import torch

from ..metrics.distances import ROWS_PER_PRODUCT, FeatureDistances, as_tensor


def expand_queries(
    query: np.ndarray | torch.Tensor, gallery: np.ndarray | torch.Tensor, k: int, alpha: float = 0.0
) -> torch.Tensor:
    """Moves each query to the mean of itself and its `k` nearest gallery items.

    Average query expansion, Chum et al., ICCV 2007; weighted by similarity, Radenović et al.,
    https://arxiv.org/abs/1711.02512, section 3.3. Which items the protocol leaves out of a query's score is not known
    to a search, so they take part here. Of items at the same distance any may be taken.

    Args:
        query (`np.ndarray` or `torch.Tensor` of shape `(queries, dim)`):
            The features of the queries.
        gallery (`np.ndarray` or `torch.Tensor` of shape `(gallery items, dim)`):
            The features of the gallery.
        k (`int`):
            How many items are taken, the nearest by cosine similarity.
        alpha (`float`, *optional*, defaults to 0.0):
            An item weighs its cosine similarity, 0 at least, to this power; 0 gives the plain mean. The query has
            weight 1.

    Returns:
        `torch.Tensor` of shape `(queries, dim)`: each as long as the query was.

    Raises:
        ValueError: If `k` is not from 1 to the number of gallery items, `alpha` is negative, or the features are
            unusable.
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
