"""Image retrieval: embeddings, a gallery on disk, query expansion, re-ranking and verification."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from .embedding import embed_images, model_fingerprint
from .query_expansion import expand_queries
from .verification import VERIFICATION_FILE, VerificationThreshold, calibrate, pair_distances


if TYPE_CHECKING:
    from .gallery import GalleryIndex
    from .reranking import rerank


# Imported on first access: these modules import faiss, which training a model does not need.
__getattr__ = lazy_names(__name__, {"GalleryIndex": "gallery", "rerank": "reranking"})

__all__ = [
    "GalleryIndex",
    "VERIFICATION_FILE",
    "VerificationThreshold",
    "calibrate",
    "embed_images",
    "expand_queries",
    "model_fingerprint",
    "pair_distances",
    "rerank",
]
