"""A synthetic re-identification data set of birds, generated in memory: individuals, cameras and distractors.

Body, wing and legs have the same colours in all birds. An individual is defined by the mark on its wing (as in
`synthetic_fgvc`) and the colours of the mark, the cap and the end of the tail. A camera has a fixed background, light,
distance, angle and side from which it sees the birds.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from datasets import Value
from PIL import Image

from .fgvc_synthetic import SUPERSAMPLING, SYNTHETIC_CLASSES, background, bird_polygons, disc, paint, png_record


_PAINTS = np.array([(220, 40, 40), (240, 200, 40), (50, 170, 60), (50, 90, 220), (240, 240, 240), (20, 20, 20)])
_BODY, _WING, _LEGS, _GROUND = np.array([(150, 130, 110), (120, 105, 95), (95, 85, 80), (135, 120, 105)])
_CAP = np.concatenate([disc(0.22)[12:], [(0.22, 0.04), (-0.22, 0.04)]]) + (0.45, -0.36)
_TAIL_END = np.array([(-0.52, -0.18), (-0.80, -0.24), (-0.76, 0.18), (-0.50, 0.15)])

# Mark on the wing, and colours of mark, cap and tail: each combination is a possible individual.
_INDIVIDUALS = tuple(product(range(len(SYNTHETIC_CLASSES)), *[range(len(_PAINTS))] * 3))
_TRAITS, _CAMERA, _PHOTO = range(3)


@dataclass(frozen=True)
class Camera:
    """A view of the birds.

    Args:
        scenery (`PIL.Image.Image`): Background, a quarter larger than an image.
        gain (`np.ndarray` of shape `(3,)`): Light: factors of red, green and blue.
        view (`np.ndarray` of shape `(2, 2)`): Angle and side: rotates, squeezes and mirrors a bird's row vectors.
        scale (`float`): Length of a bird in pixels.
    """

    scenery: Image.Image
    gain: np.ndarray
    view: np.ndarray
    scale: float

    @classmethod
    def place(cls, number: int, side: int, seed: int) -> "Camera":
        """Camera `number`, for images of `side` x `side` pixels."""
        rng = np.random.default_rng([seed, _CAMERA, number])
        angle = rng.uniform(-15, 15) * np.pi / 180
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        squeeze = np.diag([(-1.0) ** number * rng.uniform(0.75, 1.0), 1.0])
        return cls(
            scenery=background(rng, side + side // 4),
            gain=rng.uniform(0.7, 1.1) * rng.uniform(0.9, 1.1, size=3),
            view=squeeze @ rotation,
            scale=rng.uniform(0.56, 0.68) * side,
        )

    def shoot(self, traits: tuple[int, ...], rng: np.random.Generator, side: int) -> Image.Image:
        """Takes an image. With generators in the same state, images of two individuals differ only in the traits.

        Args:
            traits (`tuple[int, ...]`): Mark on the wing, and the colours of mark, cap and tail.
            rng (`np.random.Generator`): Source of pose, position and brightness.
            side (`int`): Height and width in pixels, before downscaling by `SUPERSAMPLING`.
        """
        left, top = rng.integers(0, side // 4 + 1, size=2).tolist()
        canvas = self.scenery.crop((left, top, left + side, top + side))
        mark, *paints = traits
        mark_color, cap, tail = _PAINTS[paints]
        polygons = bird_polygons(mark, _BODY, _WING, _BODY, _LEGS, _GROUND, mark_color)
        angle = rng.uniform(-8, 8) * np.pi / 180
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        linear = rotation @ self.view * self.scale * rng.uniform(0.95, 1.05)
        paint(canvas, [*polygons, (_CAP, cap), (_TAIL_END, tail)], linear, rng.uniform(0.45, 0.55, size=2) * side)
        exposed = np.asarray(canvas) * self.gain * rng.uniform(0.9, 1.1)
        return Image.fromarray(exposed.clip(0, 255).astype(np.uint8)).reduce(SUPERSAMPLING)


def synthetic_reid(
    num_train_identities: int = 120,
    num_test_identities: int = 60,
    num_cameras: int = 4,
    images_per_camera: int = 4,
    num_distractors: int = 120,
    image_size: int = 64,
    seed: int = 0,
) -> DatasetDict:
    """Generates the built-in data set `drawn`. Each image is a function of (seed, individual, camera, image number).

    Each camera takes `images_per_camera` images of each individual. For test individuals, the first image is a query
    and the others are in the gallery. The gallery also contains distractors with identity 0, each image of a different
    individual that is neither in train nor among the queries.

    Args:
        num_train_identities (`int`, *optional*, defaults to 120): Individuals in train, with identities from 1.
        num_test_identities (`int`, *optional*, defaults to 60): Individuals in query and gallery, numbered next.
        num_cameras (`int`, *optional*, defaults to 4): Cameras, numbered from 1.
        images_per_camera (`int`, *optional*, defaults to 4): Images per individual and camera, at least 2.
        num_distractors (`int`, *optional*, defaults to 120): Images with identity 0, taken by the cameras in turn.
        image_size (`int`, *optional*, defaults to 64): Height and width in pixels.
        seed (`int`, *optional*, defaults to 0): Seed of individuals, cameras and images.

    Returns:
        `datasets.DatasetDict`: splits train, query and gallery with the columns image (PNG), identity and camera_id;
        train also with label.
    """
    order = np.random.default_rng([seed, _TRAITS]).permutation(len(_INDIVIDUALS))
    num_known = num_train_identities + num_test_identities
    side = image_size * SUPERSAMPLING
    cameras = [Camera.place(number, side, seed) for number in range(num_cameras)]

    def photograph(individual: int, camera: int, number: int) -> dict:
        rng = np.random.default_rng([seed, _PHOTO, individual, camera, number])
        image = cameras[camera].shoot(_INDIVIDUALS[order[individual]], rng, side)
        identity = individual + 1 if individual < num_known else 0
        return {"image": png_record(image), "identity": identity, "camera_id": camera + 1}

    train, test = range(num_train_identities), range(num_train_identities, num_known)
    photos = {
        "train": [photograph(*key) for key in product(train, range(num_cameras), range(images_per_camera))],
        "query": [photograph(*key, 0) for key in product(test, range(num_cameras))],
        "gallery": [photograph(*key) for key in product(test, range(num_cameras), range(1, images_per_camera))],
    }
    photos["gallery"] += [photograph(num_known + index, index % num_cameras, 0) for index in range(num_distractors)]

    features = Features(image=ImageFeature(mode="RGB"), identity=Value("int64"), camera_id=Value("int64"))
    splits = DatasetDict(
        {split: Dataset.from_list(rows, features=features, split=split) for split, rows in photos.items()}
    )
    label = ClassLabel(names=[str(individual + 1) for individual in train])
    labels = [identity - 1 for identity in splits["train"]["identity"]]
    splits["train"] = splits["train"].add_column("label", labels, feature=label)
    return splits


__all__ = ["Camera", "synthetic_reid"]
