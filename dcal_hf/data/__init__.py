"""Data sets, as `datasets.DatasetDict`."""

from .drawn import DRAWN_CLASSES, draw_bird, drawn_fgvc
from .drawn_reid import drawn_reid
from .fgvc import load_fgvc
from .fgvc_layouts import OFFICIAL_FGVC
from .folder import unlabelled_images
from .images import MAX_PIXELS, open_image
from .reid import load_reid
from .reid_layouts import OFFICIAL_REID
from .splits import stratified_split, with_classes


__all__ = [
    "DRAWN_CLASSES",
    "MAX_PIXELS",
    "OFFICIAL_FGVC",
    "OFFICIAL_REID",
    "draw_bird",
    "drawn_fgvc",
    "drawn_reid",
    "load_fgvc",
    "load_reid",
    "open_image",
    "stratified_split",
    "unlabelled_images",
    "with_classes",
]
