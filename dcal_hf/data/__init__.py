"""Data sets, as `datasets.DatasetDict`."""

from .columns import column, image_names, protocol_columns
from .fgvc import load_fgvc
from .fgvc_layouts import OFFICIAL_FGVC
from .fgvc_synthetic import SYNTHETIC_CLASSES, draw_bird, synthetic_fgvc
from .folder import unlabelled_images
from .image_files import misplaced_images
from .images import MAX_PIXELS, UnreadableImageError, check_image, open_image, read_images
from .inspection import Finding, inspect_images, leave_out
from .reid import load_reid
from .reid_layouts import OFFICIAL_REID
from .reid_protocols import PROTOCOLS
from .reid_synthetic import synthetic_reid
from .splits import stratified_split, with_classes


__all__ = [
    "Finding",
    "MAX_PIXELS",
    "OFFICIAL_FGVC",
    "OFFICIAL_REID",
    "PROTOCOLS",
    "SYNTHETIC_CLASSES",
    "UnreadableImageError",
    "check_image",
    "column",
    "draw_bird",
    "image_names",
    "inspect_images",
    "leave_out",
    "load_fgvc",
    "load_reid",
    "misplaced_images",
    "open_image",
    "protocol_columns",
    "read_images",
    "stratified_split",
    "synthetic_fgvc",
    "synthetic_reid",
    "unlabelled_images",
    "with_classes",
]
