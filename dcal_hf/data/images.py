"""Reading one image so that a broken file is named."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


# What Pillow's decoders have been seen to raise on damaged files: they share no base class.
_BROKEN = (OSError, RuntimeError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def open_image(image: Image.Image | dict | str | Path) -> Image.Image:
    """Reads an image, upright and in RGB.

    The EXIF orientation is applied. Palette, grey and CMYK pixels are converted, transparent pixels are laid over
    white, and 16-bit grey is scaled down to 8 bits by dropping the low byte.

    Args:
        image (`PIL.Image.Image`, `dict`, `str` or `Path`):
            An image, a path, or the record `{"path": ..., "bytes": ...}` that `datasets.Image(decode=False)` gives.

    Returns:
        `PIL.Image.Image`: the decoded image in mode "RGB".

    Raises:
        ValueError: if the image is missing, truncated or not an image; the message names its path.
    """
    try:
        if isinstance(image, Image.Image):
            return _upright_rgb(image)
        with Image.open(_source(image)) as opened:
            return _upright_rgb(opened)
    except _BROKEN as error:
        raise ValueError(f"cannot read image {_name(image)}: {_reason(error)}; remove or replace the file") from error


def _source(image: dict | str | Path) -> str | Path | BytesIO:
    if not isinstance(image, dict):
        return image
    if image["bytes"] is not None:
        return BytesIO(image["bytes"])
    if image["path"] is None:
        raise ValueError("the record has neither path nor bytes")
    return image["path"]


def _name(image: Image.Image | dict | str | Path) -> str:
    if isinstance(image, Image.Image):
        return getattr(image, "filename", "") or "(in memory)"
    if isinstance(image, dict):
        return image["path"] or "(in memory)"
    return str(image)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that Pillow cannot read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range, save the image with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


__all__ = ["open_image"]
