"""Text in figures: fonts for any script, and line breaks."""

import re
from collections.abc import Callable, Iterable
from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font, LoadFlags
from matplotlib.text import Text
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Renders every character as a box that names its script, not the character.
PLACEHOLDER_FONT = "Last Resort"
POINTS_PER_INCH = 72
# A character, or the code of one that no installed font has.
CHARACTER = re.compile(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}|.")
# Longer names are cut in the middle: those of related classes, and of photographs, may differ only at the end.
NAME_LENGTH = 40
# In pixels: where the widths of characters are measured.
MEASURED_SIZE = 100


def shortened(name: str) -> str:
    """Cuts the middle of a long name."""
    half = NAME_LENGTH // 2
    return name if len(name) <= NAME_LENGTH else f"{name[:half]}…{name[1 - half:]}"


def legible(text: str) -> str:
    """Replaces the characters that no installed font has by their escapes, such as `\\u9e1f`, and blanks by spaces.

    Boxes in their place would make different names look the same.
    """
    return "".join(character if character == "\n" else _legible(character) for character in text)


def _legible(character: str) -> str:
    if character.isspace():
        return " "
    return character if font_of(character) else character.encode("unicode_escape").decode()


def use_fonts(figure: Figure) -> Figure:
    """Makes each text of a figure use other installed fonts for characters that the default font lacks."""
    for text in figure.findobj(Text):
        own = text.get_fontfamily()
        found = dict.fromkeys(font_of(character) for character in text.get_text() if not character.isspace())
        text.set_fontfamily([*own, *(name for name in found if name is not None and name not in own)])
    return figure


@cache
def font_of(character: str) -> str | None:
    """The default font if it has the character, else the first other installed font that has it."""
    for family in families():
        if opened(family).get_char_index(ord(character)):
            return family
    logger.warning_once(
        "Pictures show the codes of characters that no installed font has: install a font of their script, such as "
        "one of the Noto fonts."
    )
    return None


@cache
def families() -> list[str]:
    """The default font and the other installed ones that have an upright and regular face."""
    names = {entry.name for entry in fontManager.ttflist if (entry.style, entry.weight) == ("normal", 400)}
    others = sorted(name for name in names if not name.startswith(PLACEHOLDER_FONT))
    return [FontProperties().get_family()[0], *others]


@cache
def opened(family: str, weight: str = "normal") -> FT2Font:
    path = findfont(FontProperties(family=[family], weight=weight))
    font = FT2Font(path, face_index=path.face_index)
    font.set_size(MEASURED_SIZE, POINTS_PER_INCH)
    return font


@cache
def advance(character: str, weight: str) -> float:
    """Width of a legible character, relative to the font size."""
    glyph = opened(font_of(character), weight).load_char(ord(character), flags=LoadFlags.NO_HINTING)
    return glyph.horiAdvance / 64 / MEASURED_SIZE


def text_width(text: str, font_size: float, weight: str = "normal") -> float:
    """Width of a line in inches, without kerning; see [`wrapped`] for the arguments."""
    return sum(advance(character, weight) for character in legible(text)) * font_size / POINTS_PER_INCH


def wrapped(text: str, inches: float, font_size: float, weight: str = "normal") -> str:
    """Breaks lines after spaces, hyphens, underscores and slashes, or else anywhere, so that they fit a width.

    Characters that no installed font has become their codes; see [`legible`].

    Args:
        text (`str`): Text of one or several lines.
        inches (`float`): The width.
        font_size (`float`): In points.
        weight (`str`, *optional*, defaults to `"normal"`): Of the font, such as `"bold"`.
    """
    lines = []
    for paragraph in legible(text).split("\n"):
        lines += _lines(paragraph, lambda line: text_width(line, font_size, weight) <= inches)
    return "\n".join(lines)


def _lines(paragraph: str, fits: Callable[[str], bool]) -> Iterable[str]:
    line = ""
    for piece in re.findall(r"[^\s\-_/]*[\s\-_/]|[^\s\-_/]+", paragraph):
        if line and not fits(line + piece.rstrip()):
            yield line.rstrip()
            line = ""
        for character in CHARACTER.findall(piece):
            if line and not fits(line + character) and not character.isspace():
                yield line
                line = ""
            line += character
    yield line.rstrip()


__all__ = ["legible", "shortened", "text_width", "use_fonts", "wrapped"]
