"""Metrics: pure functions, and `evaluate.Metric` classes that wrap them."""

from typing import TYPE_CHECKING

from ..files import save_confusion_matrix
from ..lazy import lazy_names
from .classification import class_mean_accuracy, confusion_matrix, top_k_accuracy
from .distances import Distances, FeatureDistances
from .open_set import auroc, gallery_threshold, open_set_accuracy, open_set_metrics
from .protocol import RetrievalProtocol
from .retrieval import QUERIES_PER_CHUNK, distance_metrics, retrieval_metrics


if TYPE_CHECKING:
    from .calibration import expected_calibration_error, fit_temperature
    from .fine_grained_accuracy import ClassificationMetrics, FineGrainedAccuracy
    from .retrieval_map import RetrievalMAP


# Imported on first access: these modules import evaluate or SciPy, which the other functions do not need.
__getattr__ = lazy_names(
    __name__,
    {
        "ClassificationMetrics": "fine_grained_accuracy",
        "FineGrainedAccuracy": "fine_grained_accuracy",
        "RetrievalMAP": "retrieval_map",
        "expected_calibration_error": "calibration",
        "fit_temperature": "calibration",
    },
)

__all__ = [
    "QUERIES_PER_CHUNK",
    "ClassificationMetrics",
    "Distances",
    "FeatureDistances",
    "FineGrainedAccuracy",
    "RetrievalMAP",
    "RetrievalProtocol",
    "auroc",
    "class_mean_accuracy",
    "confusion_matrix",
    "distance_metrics",
    "expected_calibration_error",
    "fit_temperature",
    "gallery_threshold",
    "open_set_accuracy",
    "open_set_metrics",
    "retrieval_metrics",
    "save_confusion_matrix",
    "top_k_accuracy",
]
