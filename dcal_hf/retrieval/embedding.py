"""Embeds many images, in one process or several."""

import hashlib
import logging
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.images import MAX_PIXELS, open_image
from ..transforms import EvalTransform


logger = logging.getLogger(__name__)


def embed_images(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    dataset: Dataset,
    *,
    image_column: str = "image",
    batch_size: int = 32,
    num_workers: int = 0,
    skip_broken: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Embeds the images of a data set in order, with a progress bar.

    In a script started by `accelerate launch` or `torchrun` the processes share the work, and each returns all
    embeddings. Every batch has `batch_size` images, the last one padded with copies, so the result does not depend on
    the number of processes, provided that all use the same kind of device and the same number of threads.

    Args:
        model ([`DCALModel`] or any model that returns `embeddings`):
            The model. It is moved to accelerate's device and set to evaluation mode.
        image_processor (`BaseImageProcessor`):
            The image processor saved with the model.
        dataset (`datasets.Dataset`):
            A data set with a column of images or paths; its column bbox, if any, says which part of each to read.
        image_column (`str`, *optional*, defaults to `"image"`):
            Name of that column.
        batch_size (`int`, *optional*, defaults to 32):
            Images per batch and process.
        num_workers (`int`, *optional*, defaults to 0):
            Data-loading processes per embedding process.
        skip_broken (`bool`, *optional*, defaults to `False`):
            Return a row of NaN for an unreadable image and warn with its path, instead of raising an error.
        max_pixels (`int`, *optional*):
            The largest allowed image, see [`~dcal_hf.data.open_image`].

    Returns:
        `np.ndarray` of shape `(N, D)` and type float32.

    Raises:
        ValueError: If the data set is empty or an image cannot be read; the message names its path.
    """
    if len(dataset) == 0:
        raise ValueError("There are no images to embed.")
    # Without GPUs, accelerate sees a single process under torchrun unless cpu is set.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    batch_size = min(batch_size, len(dataset))
    dataset = dataset.select_columns([image_column, *({"bbox"} & set(dataset.column_names))])
    if isinstance(dataset.features[image_column], ImageFeature):
        dataset = dataset.cast_column(image_column, ImageFeature(decode=False))
    dataset = dataset.with_transform(_Reader(EvalTransform(image_processor, max_pixels), image_column, skip_broken))
    loader = accelerator.prepare(DataLoader(dataset, batch_size=batch_size, num_workers=num_workers))
    model.to(accelerator.device).eval()
    parts = []
    for batch in tqdm(loader, desc="Embedding", unit="batch", disable=not accelerator.is_main_process):
        embeddings = embed_batch(model, batch["pixel_values"].to(model.dtype), batch_size)
        embeddings[~batch["readable"]] = torch.nan
        parts.append(accelerator.gather_for_metrics(embeddings).cpu())
    return torch.cat(parts).numpy()


@torch.no_grad()
def embed_batch(model: nn.Module, pixel_values: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Embeddings (n, D), float32, of images (n, 3, height, width), padded with copies to `batch_size` images.

    Padding keeps the results independent of the size of the last batch of a data set.
    """
    num_copies = batch_size - len(pixel_values)
    padded = torch.cat([pixel_values, pixel_values[-1:].expand(num_copies, -1, -1, -1)])
    return model(padded).embeddings[:len(pixel_values)].float()


@dataclass
class _Reader:
    """Batch transform: `{image_column: [...]}` -> `{"pixel_values": [(3, height, width)], "readable": [bool]}`."""

    transform: EvalTransform
    image_column: str
    skip_broken: bool

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        boxes = batch.get("bbox", repeat(None))
        images = [self.open(image, box) for image, box in zip(batch[self.image_column], boxes)]
        blank = Image.new("RGB", (32, 32))
        pixel_values = self.transform({"image": [image or blank for image in images]})["pixel_values"]
        return {"pixel_values": pixel_values, "readable": [image is not None for image in images]}

    def open(self, image: dict | str, box: list[float] | None) -> Image.Image | None:
        try:
            return open_image(image, self.transform.max_pixels, box)
        except ValueError as error:
            if not self.skip_broken:
                raise
            logger.warning("%s", error)
            return None


def model_fingerprint(model: PreTrainedModel) -> str:
    """Identifies a model by its weights, such as `"dcal-91b1f0b2b3c2a1d4"`, wherever the checkpoint is stored.

    Heads are excluded, so a classifier and the `AutoModel` of the same checkpoint have the same fingerprint.
    Configuration and image processor are not part of it. A checkpoint in half precision has the same fingerprint if it
    is loaded in float32, which can represent all its weights.

    Args:
        model (`PreTrainedModel`): The model.

    Returns:
        `str`: the model type, and the first 16 hexadecimal digits of the SHA-256 of the weights.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.base_model.state_dict().items()):
        digest.update(name.encode())
        if weight.dtype in (torch.bfloat16, torch.float16):
            weight = weight.float()
        digest.update(weight.detach().cpu().flatten().view(torch.uint8).numpy())
    return f"{model.config.model_type}-{digest.hexdigest()[:16]}"


__all__ = ["embed_batch", "embed_images", "model_fingerprint"]
