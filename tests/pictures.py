"""What the tests of figures draw, and what they read from a figure."""

from itertools import combinations

import numpy as np
from matplotlib.colors import to_rgba
from PIL import Image


# Colour and sign of the frame.
MARKS = {True: (to_rgba("#009e73"), "\u2713"), False: (to_rgba("#d55e00"), "\u2717")}


def mark(cell):
    """Colour and sign of the frame of a picture, or None."""
    color = tuple(cell.spines["left"].get_edgecolor())
    signs = [text.get_text() for text in cell.texts]
    return (color, *signs) if cell.axison and color[3] else None


def gray(width, height, level=100):
    return Image.new("RGB", (width, height), (level, level, level))


def one_hot(index, count):
    rollout = np.zeros(count, dtype=np.float32)
    rollout[index] = 1.0
    return rollout


def brightness(picture):
    return np.asarray(picture.convert("L"), dtype=np.int64)


def count_overlaps(boxes):
    """Number of pairs of boxes that share more than a pixel in both directions."""
    return sum(
        min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
        for one, other in combinations(boxes, 2)
    )
