"""A synthetic fine-grained data set of birds, generated in memory: no download, 1,000 images in two seconds.

Pose, size, colours and background have the same distribution in every class. Classes differ only in the shape of the
small mark on the wing, light on dark. All marks have the same area, so colour statistics do not reveal the class.
"""

from io import BytesIO

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw


SUPERSAMPLING = 3
_SPLITS = ("train", "validation", "test")


def disc(radius: float, center: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """A disc as a polygon of shape (24, 2)."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + center


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


# Polygons within the unit disc, x towards the bill, y down: first those in the colour of the mark, then those in the
# colour of the ground over them. Each mark covers about 35 % of the disc.
_MARKS: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {
    "bar": ([_box(-0.31, -0.89, 0.31, 0.89)], []),
    "two_bars": ([_box(-0.6, -0.73, -0.22, 0.73), _box(0.22, -0.73, 0.6, 0.73)], []),
    "belt": ([_box(-0.89, -0.31, 0.89, 0.31)], []),
    "spot": ([disc(0.6)], []),
    "ring": ([disc(0.78)], [disc(0.5)]),
    "cross": ([_box(-0.17, -0.92, 0.17, 0.92), _box(-0.92, -0.17, 0.92, 0.17)], []),
    "triangle": ([np.array([(0.0, -0.9), (0.8, 0.48), (-0.8, 0.48)])], []),
    "chevron": ([np.array([(-0.75, -0.58), (0, 0.12), (0.75, -0.58), (0.75, 0.15), (0, 0.85), (-0.75, 0.15)])], []),
    "cap": ([np.concatenate([disc(0.85)[12:], [(0.85, 0.0)]])], []),
    "checker": ([_box(-0.7, -0.7, 0.03, 0.03), _box(-0.03, -0.03, 0.7, 0.7)], []),
}
SYNTHETIC_CLASSES: tuple[str, ...] = tuple(_MARKS)

# The bird in its own coordinates: the body has a length of about 1, x points to the bill, y down.
_TAIL = np.array([(-0.36, -0.10), (-0.78, -0.16), (-0.74, 0.10), (-0.34, 0.10)])
_LEGS = [np.array([(x, 0.2), (x + 0.03, 0.2), (x + 0.05, 0.52), (x + 0.02, 0.52)]) for x in (-0.06, 0.10)]
_BILL = np.array([(0.60, -0.38), (0.80, -0.27), (0.58, -0.22)])
_BODY = disc(1.0) * (0.48, 0.32)
_WING = disc(1.0) * (0.36, 0.25) + (-0.1, -0.01)
_HEAD, _EYE = disc(0.19, (0.46, -0.28)), disc(0.04, (0.51, -0.31))
_MARK_CENTER, _MARK_RADIUS = np.array([-0.06, 0.0]), 0.19


def draw_bird(label: int, rng: np.random.Generator, image_size: int = 96) -> Image.Image:
    """Draws one bird. With generators in the same state, birds of two classes differ only inside the mark.

    Args:
        label (`int`): Class, an index into `SYNTHETIC_CLASSES`.
        rng (`np.random.Generator`): Source of everything but the class. The label does not change what is sampled.
        image_size (`int`, *optional*, defaults to 96): Height and width in pixels.

    Returns:
        `PIL.Image.Image`: an RGB image of `image_size` x `image_size`.
    """
    side = image_size * SUPERSAMPLING
    canvas = background(rng, side)
    linear, offset = _pose(rng, side)
    body, wing, head, legs = rng.integers(70, 186, size=(4, 3))
    ground, mark = rng.integers(0, 60, size=3), rng.integers(196, 256, size=3)
    paint(canvas, bird_polygons(label, body, wing, head, legs, ground, mark), linear, offset)
    return canvas.reduce(SUPERSAMPLING)


def bird_polygons(
    label: int,
    body: np.ndarray,
    wing: np.ndarray,
    head: np.ndarray,
    legs: np.ndarray,
    ground: np.ndarray,
    mark: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Polygons and colours of a bird in its own coordinates, from back to front.

    Args:
        label (`int`): The mark on the wing, an index into `SYNTHETIC_CLASSES`.
        body, wing, head, legs, ground, mark (`np.ndarray` of shape `(3,)`): Colours; `ground` is the one behind the
            mark.

    Returns:
        `list[tuple[np.ndarray, np.ndarray]]`: vertices (V, 2) and colour (3,) of each polygon.
    """
    plumage = [(polygon, legs) for polygon in (_TAIL, *_LEGS)]
    plumage += [(_BODY, body), (_HEAD, head), (_BILL, legs), (_EYE, np.array([15, 15, 15])), (_WING, wing)]
    over, under = _MARKS[SYNTHETIC_CLASSES[label]]
    for polygons, color in (([disc(1.0)], ground), (over, mark), (under, ground)):
        plumage += [(polygon * _MARK_RADIUS + _MARK_CENTER, color) for polygon in polygons]
    return plumage


def paint(
    canvas: Image.Image, polygons: list[tuple[np.ndarray, np.ndarray]], linear: np.ndarray, offset: np.ndarray
) -> None:
    """Draws polygons onto the canvas in place, transformed to pixels by a (2, 2) matrix and a (2,) offset."""
    draw = ImageDraw.Draw(canvas)
    for polygon, color in polygons:
        draw.polygon((polygon @ linear + offset).ravel().tolist(), fill=tuple(color.tolist()))


def background(rng: np.random.Generator, side: int) -> Image.Image:
    """A background of `side` x `side` pixels: blurred patches of random colours, with ellipses and lines over them."""
    coarse = rng.integers(90, 166, size=3) + rng.integers(-40, 41, size=(4, 4, 3))
    canvas = Image.fromarray(coarse.astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(canvas)
    for x, y, width, height in rng.uniform(0, side, size=(8, 4)) * (1, 1, 0.2, 0.2):
        draw.ellipse((x, y, x + width, y + height), fill=tuple(rng.integers(70, 186, size=3).tolist()))
    for line in rng.uniform(0, side, size=(3, 4)):
        draw.line(line.tolist(), fill=tuple(rng.integers(70, 186, size=3).tolist()), width=side // 48)
    return canvas


def _pose(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A random (2, 2) matrix (flip, rotation, scale) and (2,) offset from the bird's row vectors to pixels."""
    angle = rng.uniform(-25, 25) * np.pi / 180
    scale = rng.uniform(0.58, 0.68) * side
    flip = np.diag([rng.choice([-1.0, 1.0]), 1.0])
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return flip @ rotation * scale, rng.uniform(0.44, 0.56, size=2) * side


def synthetic_fgvc(
    num_train: int = 3000, num_validation: int = 500, num_test: int = 500, image_size: int = 96, seed: int = 0
) -> DatasetDict:
    """Generates the built-in data set `drawn`: 10 classes in turn, each image a function of (seed, split, index).

    Args:
        num_train (`int`, *optional*, defaults to 3000): Training images.
        num_validation (`int`, *optional*, defaults to 500): Validation images.
        num_test (`int`, *optional*, defaults to 500): Test images.
        image_size (`int`, *optional*, defaults to 96): Height and width in pixels.
        seed (`int`, *optional*, defaults to 0): Seed of the images; the classes are always the same.

    Returns:
        `datasets.DatasetDict`: splits train, validation and test with the columns image (PNG) and label.
    """
    features = Features({"image": ImageFeature(mode="RGB"), "label": ClassLabel(names=list(SYNTHETIC_CLASSES))})
    splits = DatasetDict()
    for number, (split, size) in enumerate(zip(_SPLITS, (num_train, num_validation, num_test))):
        labels = [index % len(SYNTHETIC_CLASSES) for index in range(size)]
        generators = (np.random.default_rng([seed, number, index]) for index in range(size))
        images = [png_record(draw_bird(label, rng, image_size)) for label, rng in zip(labels, generators)]
        splits[split] = Dataset.from_dict({"image": images, "label": labels}, features=features, split=split)
    return splits


def png_record(image: Image.Image) -> dict:
    """An image as a record of `datasets.Image`, encoded as PNG."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return {"path": None, "bytes": buffer.getvalue()}


__all__ = [
    "SYNTHETIC_CLASSES",
    "SUPERSAMPLING",
    "background",
    "bird_polygons",
    "disc",
    "draw_bird",
    "synthetic_fgvc",
    "paint",
    "png_record",
]
