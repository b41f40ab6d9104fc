"""Reads images; error messages name the file."""

import logging
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import reason_of


logger = logging.getLogger(__name__)
# The formats that data sets use. Pillow's other formats are less well maintained, and EPS runs a program.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Bytes 4 to 12 of a HEIC file, the format of many phones (ISO/IEC 23008-12, annex B). Reading it needs pillow-heif.
_HEIC_BRANDS = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1"))
# The limit above which Pillow warns.
MAX_PIXELS = 89_478_485
# EXIF orientations that turn width into height.
_TURNED = (5, 6, 7, 8)

# Errors that Pillow's decoders raise on damaged files; they have no common base class.
_BROKEN = (OSError, RuntimeError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
# Logged for the first such image only, because a data set often has many.
_WARNINGS = {
    "16 bits": "%s has 16 bits per pixel; it and all further 16-bit images are scaled to 8 bits. transformers "
    "pipelines clip them to white: give them open_image(path) instead of the path",
    "transparent": "%s is partly transparent; the transparency of it and all further images is ignored, as in "
    "transformers pipelines. Draw it over a background if the colours of transparent pixels must not be visible",
}
_warned: set[str] = set()


class UnreadableImageError(ValueError):
    """An image is missing, damaged, too large, or of another format; the message names it."""


def open_image(
    image: Image.Image | dict | str | Path, max_pixels: int = MAX_PIXELS, bbox: Sequence[float] | None = None
) -> Image.Image:
    """Reads an image as upright RGB.

    The EXIF orientation is applied, palette, grey and CMYK pixels are converted, and transparency is dropped, as in
    transformers pipelines. The exception is 16-bit grey: it is scaled to 8 bits here by dropping the low byte, whereas
    pipelines clip it to white; pass them the output of this function instead. The first transparent and the first
    16-bit image are logged as warnings. HEIC needs pillow-heif (`pip install "dcal_hf[heic]"`).

    Args:
        image (`PIL.Image.Image`, `dict`, `str` or `Path`):
            An image, a path, or a record `{"path": ..., "bytes": ...}` as from `datasets.Image(decode=False)`.
        max_pixels (`int`, *optional*, defaults to 89,478,485):
            Largest number of pixels (width times height) to decode; a small file can decode to more than fits in
            memory. Above twice the default, raise `PIL.Image.MAX_IMAGE_PIXELS`, too.
        bbox (`Sequence[float]` of length 4, *optional*):
            `[x, y, width, height]` in pixels of the upright image, rounded: the part of it to return.

    Returns:
        `PIL.Image.Image`: the decoded image in mode "RGB".

    Raises:
        ValueError: if the image is missing, truncated, too large, not in one of `FORMATS` or HEIC, or not a regular
            file, or if the box is outside of it; the message names its path.
    """
    with _opened(image, max_pixels) as opened:
        return _cropped(_upright_rgb(opened, _name(image)), bbox)


def check_image(
    image: dict | str | Path,
    max_pixels: int = MAX_PIXELS,
    decode: bool = True,
    bbox: Sequence[float] | None = None,
) -> tuple[int, int]:
    """Checks that [`open_image`] can read an image, without computing most of its pixels.

    Args:
        image (`dict`, `str` or `Path`): As in [`open_image`].
        max_pixels (`int`, *optional*): As in [`open_image`].
        decode (`bool`, *optional*, defaults to `True`):
            Whether to read the whole file, which finds truncated ones: a JPEG at an eighth of its height and width,
            other formats in full. Otherwise only the header is read.
        bbox (`Sequence[float]` of length 4, *optional*): As in [`open_image`].

    Returns:
        `tuple[int, int]`: width and height in pixels, of the image as stored, or of the box in it.

    Raises:
        ValueError: As [`open_image`].
    """
    with _opened(image, max_pixels) as opened:
        size = opened.size
        if decode:
            opened.draft(None, (1, 1))
            _upright_rgb(opened, _name(image))
        if bbox is None:
            return size
        # Of a PNG this decodes the pixels.
        if opened.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED:
            size = size[::-1]
        left, top, right, bottom = _edges(size, bbox)
        return right - left, bottom - top


@contextmanager
def _opened(image: Image.Image | dict | str | Path, max_pixels: int) -> Iterator[Image.Image]:
    """The image before its pixels are read. Errors name it, also those that reading the pixels raises."""
    try:
        if isinstance(image, Image.Image):
            _check_pixels(image, max_pixels)
            yield image
            return
        with _identified(_source(image)) as opened:
            _check_pixels(opened, max_pixels)
            yield opened
    except _BROKEN as error:
        reason = image_error_reason(error)
        raise UnreadableImageError(
            f"cannot read image {_name(image)}: {reason}; remove or replace the file"
        ) from error


def read_images(batch: Mapping[str, Sequence], max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Reads the column image of a batch, cropped to the column bbox if there is one, one image after the other.

    See [`open_image`].
    """
    boxes = batch["bbox"] if "bbox" in batch else repeat(None)
    return (open_image(image, max_pixels, box) for image, box in zip(batch["image"], boxes))


def _identified(source: str | Path | BytesIO) -> Image.Image:
    try:
        return Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        if not _is_heic(source):
            raise
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise ValueError('HEIC needs pillow-heif: pip install "dcal_hf[heic]", or convert the file') from error
    register_heif_opener()
    return Image.open(source, formats=("HEIF",))


def _is_heic(source: str | Path | BytesIO) -> bool:
    if isinstance(source, BytesIO):
        return source.getvalue()[4:12] in _HEIC_BRANDS
    with open(source, "rb") as file:
        return file.read(12)[4:] in _HEIC_BRANDS


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels, more than max_pixels = {max_pixels}; if you trust it, "
            "raise max_pixels"
        )


def _source(image: dict | str | Path) -> str | Path | BytesIO:
    if isinstance(image, dict):
        if image["bytes"] is not None:
            return BytesIO(image["bytes"])
        if image["path"] is None:
            raise ValueError("the record has neither path nor bytes")
        image = image["path"]
    # Opening a pipe would block until another process writes to it.
    if not stat.S_ISREG(os.stat(image).st_mode):
        raise ValueError("not a regular file")
    return image


def _name(image: Image.Image | dict | str | Path) -> str:
    if isinstance(image, Image.Image):
        return getattr(image, "filename", "") or "(in memory)"
    if isinstance(image, dict):
        return image["path"] or "(in memory)"
    return str(image)


def image_error_reason(error: BaseException) -> str:
    """What is wrong with an image, from an error that reading it raised."""
    if isinstance(error, UnidentifiedImageError):
        return f"not an image of the formats {', '.join((*FORMATS, 'HEIC'))}, or damaged"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels; if you trust it, raise max_pixels and PIL.Image.MAX_IMAGE_PIXELS"
    return reason_of(error)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range, save the image with 8 or 16 bits")
    # Before transparency, which 16-bit grey may have, too: Pillow clips it to white when it adds an alpha channel.
    if image.mode.startswith("I"):
        _warn_once("16 bits", name)
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            _warn_once("transparent", name)
    return image if image.mode == "RGB" else image.convert("RGB")


def _cropped(image: Image.Image, bbox: Sequence[float] | None) -> Image.Image:
    return image if bbox is None else image.crop(_edges(image.size, bbox))


def _edges(size: tuple[int, int], bbox: Sequence[float]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a box in an upright image."""
    x, y, width, height = bbox
    edges = zip(map(round, (x, y, x + width, y + height)), (*size, *size))
    left, top, right, bottom = (min(max(edge, 0), length) for edge, length in edges)
    if left >= right or top >= bottom:
        raise ValueError(f"nothing of the box [x, y, width, height] = {list(bbox)} is in its {size} pixels")
    return left, top, right, bottom


def _warn_once(kind: str, name: str) -> None:
    """Warns once per process."""
    if kind not in _warned:
        _warned.add(kind)
        logger.warning(_WARNINGS[kind], name)


__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "UnreadableImageError",
    "check_image",
    "image_error_reason",
    "open_image",
    "read_images",
]
