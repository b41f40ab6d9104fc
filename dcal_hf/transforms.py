"""Transforms from images to model inputs for both tasks, configured by the image processor.

Fine-grained classification: resize to 550/448 of the input size and random crop (paper, section 4.1), and a horizontal
flip (not in the paper, but in all comparable recipes); evaluation uses the same resize and a centre crop.
Re-identification: TransReID's transforms, see [`ReIDTrainTransform`]; evaluation only resizes. The transform of
evaluation *is* the image processor, so a saved model preprocesses images exactly as it was evaluated.
"""

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_pil_interp
from torch.utils.data import Dataset
from torchvision.transforms import v2
from transformers import BaseImageProcessor, TimmWrapperImageProcessor, ViTImageProcessor

from .data.images import MAX_PIXELS, read_images


def fine_grained_processor(
    image_processor: BaseImageProcessor, image_size: tuple[int, int], resize_ratio: float = 550 / 448
) -> BaseImageProcessor:
    """A copy of the processor that resizes to `resize_ratio` times the input size and crops the centre.

    Args:
        image_size (`(height, width)`): Input size of the model, in pixels.
        resize_ratio (`float`): Resized side over input side. As in the paper, the aspect ratio is not kept.
    """
    height, width = image_size
    processor = adjustable(image_processor)
    processor.do_resize = processor.do_center_crop = True
    processor.size = {"height": round(height * resize_ratio), "width": round(width * resize_ratio)}
    processor.crop_size = {"height": height, "width": width}
    return processor


def reid_processor(image_processor: BaseImageProcessor, image_size: tuple[int, int]) -> BaseImageProcessor:
    """A copy of the processor that resizes to the input size with bicubic interpolation and does not crop.

    Args:
        image_size (`(height, width)`): Input size of the model, in pixels; the aspect ratio is not kept.
    """
    height, width = image_size
    processor = adjustable(image_processor)
    processor.do_resize, processor.do_center_crop = True, False
    processor.size = {"height": height, "width": width}
    processor.resample = Image.Resampling.BICUBIC
    return processor


def adjustable(image_processor: BaseImageProcessor) -> BaseImageProcessor:
    """A copy with configurable sizes.

    timm's processor has none, so it is replaced by one with the same mean, standard deviation and interpolation.
    """
    if not isinstance(image_processor, TimmWrapperImageProcessor):
        return copy.deepcopy(image_processor)
    config = image_processor.data_config
    return ViTImageProcessor(
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
        resample=str_to_pil_interp(config["interpolation"]),
    )


@dataclass
class TrainTransform:
    """Batch transform for `Dataset.with_transform`: resize, random crop, flip, optional timm augmentation.

    Args:
        processor: Output of [`fine_grained_processor`]: sizes, interpolation, mean and standard deviation.
        auto_augment (`str`, *optional*): Configuration of timm's RandAugment, e.g. `"rand-m9-mstd0.5-inc1"`.
        color_jitter (`float`): Strength of brightness, contrast and saturation jitter.
        random_erasing (`float`): Probability of erasing a rectangle, which is filled with per-pixel noise.
        max_pixels (`int`): The largest allowed image, see [`~dcal_hf.data.open_image`].
    """

    processor: BaseImageProcessor
    auto_augment: str | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        processor = self.processor
        size = crop = _height_and_width(processor.size)
        if processor.do_center_crop:
            crop = _height_and_width(processor.crop_size)
        steps = [
            v2.Resize(size, interpolation=processor.resample),
            v2.RandomCrop(crop),
            v2.RandomHorizontalFlip(),
        ]
        if self.auto_augment is not None:
            mean, _ = _mean_and_std(processor)
            filling = {"img_mean": tuple(round(255 * value) for value in mean)}
            steps.append(rand_augment_transform(self.auto_augment, filling))
        if self.color_jitter > 0:
            steps.append(v2.ColorJitter(*[self.color_jitter] * 3))
        self.pipeline = v2.Compose(steps + _tensor_steps(processor, self.random_erasing))

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """`{"image": [...], "label": [...]}` -> `{"pixel_values": [(3, height, width)], "labels": [...]}`."""
        return _model_inputs([self.pipeline(image) for image in read_images(batch, self.max_pixels)], batch)


@dataclass
class ReIDTrainTransform:
    """Batch transform for `Dataset.with_transform`: resize, flip, pad and random crop, random erasing.

    As in TransReID (https://github.com/damo-cv/TransReID): the image is padded with black on all sides before the
    crop, and erased rectangles are filled with Gaussian noise per pixel.

    Args:
        processor: Output of [`reid_processor`]: size, interpolation, mean and standard deviation.
        padding (`int`): Pixels of padding on each side.
        random_erasing (`float`): Probability of erasing a rectangle.
        horizontal_flip (`float`): Probability of a horizontal flip; 0 if left and right tell individuals apart.
        affine (`float`): Strength of a random affine transform before the crop: rotation and shear by up to this many
            degrees, translation and scaling by up to this many per cent. The default 0, as in TransReID, disables it.
        max_pixels (`int`): The largest allowed image, see [`~dcal_hf.data.open_image`].
    """

    processor: BaseImageProcessor
    padding: int = 10
    random_erasing: float = 0.5
    horizontal_flip: float = 0.5
    affine: float = 0.0
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        size = _height_and_width(self.processor.size)
        steps = [
            v2.Resize(size, interpolation=self.processor.resample),
            v2.RandomHorizontalFlip(self.horizontal_flip),
            *_affine(size, self.affine),
            v2.RandomCrop(size, padding=self.padding),
        ]
        self.pipeline = v2.Compose(steps + _tensor_steps(self.processor, self.random_erasing))

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """`{"image": [...], "label": [...]}` -> `{"pixel_values": [(3, height, width)], "labels": [...]}`."""
        return _model_inputs([self.pipeline(image) for image in read_images(batch, self.max_pixels)], batch)


@dataclass
class EvalTransform:
    """Batch transform for `Dataset.with_transform`: the image processor itself.

    Args:
        processor: From [`fine_grained_processor`] or [`reid_processor`], or the one that was saved with a model.
        max_pixels (`int`): The largest allowed image, see [`~dcal_hf.data.open_image`].
    """

    processor: BaseImageProcessor
    max_pixels: int = MAX_PIXELS

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """`{"image": [...]}` -> `{"pixel_values": [(3, height, width)]}`, with `label`, if present, as `labels`.

        Images are cropped to `bbox`, if present; see [`~dcal_hf.data.read_images`].
        """
        # One at a time: a decoded photograph takes some 36 MB, and its model input 0.6.
        pixel_values = [self.pixel_values(image) for image in read_images(batch, self.max_pixels)]
        return _model_inputs(pixel_values, batch)

    def pixel_values(self, image: Image.Image) -> torch.Tensor:
        """The model's input (3, height, width)."""
        return self.processor(image, return_tensors="pt")["pixel_values"][0]


def _height_and_width(size: Mapping[str, int]) -> tuple[int, int]:
    """The sides of a size of an image processor.

    Raises:
        ValueError: If it has other sides.
    """
    sides = dict(size)
    if not {"height", "width"} <= sides.keys():
        raise ValueError(
            f"The image processor has the size {sides}, without height and width: prepare it with "
            "fine_grained_processor or reid_processor."
        )
    return sides["height"], sides["width"]


def _affine(size: tuple[int, int], strength: float) -> list[Callable]:
    """A random affine transform that fills uncovered pixels with the border of the image."""
    if strength == 0:
        return []
    (height, width), padding, share = size, max(size), strength / 100
    return [
        v2.Pad(padding, padding_mode="edge"),
        v2.RandomAffine(
            strength,
            # Relative to the padded image.
            translate=tuple(share * side / (side + 2 * padding) for side in (width, height)),
            scale=(1 - share, 1 + share),
            shear=strength,
            interpolation=v2.InterpolationMode.BILINEAR,
        ),
        v2.CenterCrop(size),
    ]


def _mean_and_std(processor: BaseImageProcessor) -> tuple[list[float], list[float]]:
    """What the processor subtracts from pixels from 0 to 1, and then divides them by, for each channel."""
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0] * 3, [1] * 3)
    return [value / scale for value in mean], [value / scale for value in std]


def _tensor_steps(processor: BaseImageProcessor, random_erasing: float) -> list[Callable]:
    """Converts a PIL image to a tensor as the processor does, with optional random erasing."""
    steps = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*_mean_and_std(processor))]
    if random_erasing > 0:
        steps.append(RandomErasing(random_erasing, mode="pixel", device="cpu"))
    return steps


def _model_inputs(pixel_values: list[torch.Tensor], batch: dict[str, list]) -> dict[str, list]:
    """Model inputs of a batch. Query and gallery sets have identities, but no labels."""
    labels = {"labels": batch["label"]} if "label" in batch else {}
    return {"pixel_values": pixel_values, **labels}


class SeededDataset(Dataset):
    """Makes the augmentation of image i a function of (seed, epoch, i).

    It then depends neither on the number of workers and processes nor on resuming in the middle of an epoch, and does
    not change the random state of the training process.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed
        # In shared memory, so that persistent workers see a new epoch.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the random augmentation depends on."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        with isolated_random_state([self.seed, int(self.epoch), index]):
            return self.dataset[index]


@contextmanager
def isolated_random_state(entropy: list[int]) -> Iterator[None]:
    """Seeds torch (CPU), NumPy and Python from `entropy` in the context, and restores their states afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    # Not torch.manual_seed, which also seeds every device and queues a call for each that is not initialised yet.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


__all__ = [
    "EvalTransform",
    "ReIDTrainTransform",
    "SeededDataset",
    "TrainTransform",
    "fine_grained_processor",
    "reid_processor",
]
