"""Data sets, as `datasets.DatasetDict`."""

from .fgvc import load_fgvc
from .fgvc_layouts import OFFICIAL_FGVC
from .fgvc_synthetic import SYNTHETIC_CLASSES, draw_bird, synthetic_fgvc
from .folder import unlabelled_images
from .images import MAX_PIXELS, open_image
from .reid import load_reid
from .reid_layouts import OFFICIAL_REID
from .reid_synthetic import synthetic_reid
from .splits import stratified_split, with_classes


__all__ = [
    "SYNTHETIC_CLASSES",
    "MAX_PIXELS",
    "OFFICIAL_FGVC",
    "OFFICIAL_REID",
    "draw_bird",
    "synthetic_fgvc",
    "synthetic_reid",
    "load_fgvc",
    "load_reid",
    "open_image",
    "stratified_split",
    "unlabelled_images",
    "with_classes",
]
