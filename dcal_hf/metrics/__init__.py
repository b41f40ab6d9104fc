"""Metrics: arithmetic as pure functions, and `evaluate.Metric` classes over it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..files import save_confusion_matrix
from .classification import class_mean_accuracy, confusion_matrix, top_k_accuracy
from .distances import Distances, FeatureDistances
from .retrieval import QUERIES_PER_CHUNK, distance_metrics, retrieval_metrics


if TYPE_CHECKING:
    from .fine_grained_accuracy import ClassificationMetrics, FineGrainedAccuracy
    from .retrieval_map import RetrievalMAP


# Imported when asked for: their modules import evaluate, and the arithmetic does not need it.
MODULES = {
    "ClassificationMetrics": "fine_grained_accuracy",
    "FineGrainedAccuracy": "fine_grained_accuracy",
    "RetrievalMAP": "retrieval_map",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{MODULES[name]}", __name__), name)


__all__ = [
    "QUERIES_PER_CHUNK",
    "ClassificationMetrics",
    "Distances",
    "FeatureDistances",
    "FineGrainedAccuracy",
    "RetrievalMAP",
    "class_mean_accuracy",
    "confusion_matrix",
    "distance_metrics",
    "retrieval_metrics",
    "save_confusion_matrix",
    "top_k_accuracy",
]
