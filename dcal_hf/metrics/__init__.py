"""Metrics: arithmetic as pure functions, and `evaluate.Metric` classes over it."""

from ..files import save_confusion_matrix
from .classification import class_mean_accuracy, confusion_matrix, top_k_accuracy
from .distances import Distances, FeatureDistances
from .fine_grained_accuracy import ClassificationMetrics, FineGrainedAccuracy
from .retrieval import distance_metrics, retrieval_metrics
from .retrieval_map import RetrievalMAP


__all__ = [
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
