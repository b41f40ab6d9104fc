"""Retrieval metrics as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np

from .distances import DistanceMetric
from .protocol import Column
from .retrieval import retrieval_metrics


class RetrievalMAP(evaluate.Metric):
    """mAP, CMC, mINP and the verification ROC of query and gallery features, as an `evaluate` metric.

    Use the class directly, or load it with `evaluate.load` and the path of this file. Neither needs a network.
    `evaluate.load` copies only the modules that this file imports, so it imports all that [`retrieval_metrics`] needs.
    `evaluate` passes inputs to a metric as Python lists in single precision, so this class is for sets of up to some
    ten thousand images; [`retrieval_metrics`] computes the same without that limit.

    Args:
        config_name (`str`, *optional*):
            How a query is kept from finding itself. `"default"` takes a column `cameras` and ignores items with the
            query's identity and camera. `"images"`, for data without cameras, takes a column `images` instead and
            ignores items with the query's image.

    Example:

    ```python
    >>> metric = RetrievalMAP()
    >>> metric.compute(
    ...     predictions=[[0.0, 1.0], [0.1, 1.0], [0.9, 0.2]], references=[7, 7, 8], is_query=[True, False, False],
    ...     cameras=[1, 2, 2],
    ... )["map"]
    1.0
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        column = "images" if self.config_name == "images" else "cameras"
        return evaluate.MetricInfo(
            description="Retrieval by the Market-1501 protocol: mAP, CMC, mINP and the verification ROC.",
            citation="",
            inputs_description="""
Args:
    predictions (`list` or `np.ndarray` of shape `(n, dim)`): the features of query and gallery images.
    references (`list` or `np.ndarray` of shape `(n,)`): the identity of each image; -1 is junk.
    is_query (`list` or `np.ndarray` of shape `(n,)`): whether the image is a query or a gallery item.
    cameras (`list` or `np.ndarray` of shape `(n,)`): the camera of each image, in the default configuration.
    images (`list` or `np.ndarray` of shape `(n,)`): the number of each image, in the configuration "images".
    metric (`"euclidean"` or `"cosine"`, *optional*, defaults to `"euclidean"`): the distance.

Returns:
    map, map_trapezoid, minp, r_precision, map_at_r, rank1, rank5, rank10, tpr_at_fpr_1e-4, ...
    (`float`): each from 0 to 1.
    threshold_at_fpr_1e-4, ... (`float`): distances.
    num_queries, num_skipped (`int`): the number of queries, and how many of them could not be scored.
""",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                    "is_query": datasets.Value("bool"),
                    column: datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: Column,
        is_query: Column,
        cameras: Column | None = None,
        images: Column | None = None,
        metric: DistanceMetric = "euclidean",
    ) -> dict[str, float | int]:
        if len({len(features) for features in predictions}) > 1:
            raise ValueError("Every image must have the same number of features.")
        features, ids, is_query = np.asarray(predictions, dtype=np.float32), np.asarray(references), np.array(is_query)
        columns = {
            f"{part}_{name}": np.asarray(column)[chosen]
            for name, column in (("cameras", cameras), ("images", images)) if column is not None
            for part, chosen in (("query", is_query), ("gallery", ~is_query))
        }
        return retrieval_metrics(
            features[is_query], features[~is_query], ids[is_query], ids[~is_query], **columns, metric=metric
        )
