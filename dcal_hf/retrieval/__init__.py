"""Search by image: embeddings, a gallery of them on disk, query expansion, re-ranking, verification."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .embedding import embed_images, model_fingerprint
from .query_expansion import expand_queries
from .verification import VerificationThreshold, calibrate, pair_distances


if TYPE_CHECKING:
    from .gallery import GalleryIndex
    from .reranking import rerank


# Imported when asked for: their modules import faiss, and who only trains a model does not need it.
MODULES = {"GalleryIndex": "gallery", "rerank": "reranking"}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{MODULES[name]}", __name__), name)


__all__ = [
    "GalleryIndex",
    "VerificationThreshold",
    "calibrate",
    "embed_images",
    "expand_queries",
    "model_fingerprint",
    "pair_distances",
    "rerank",
]
