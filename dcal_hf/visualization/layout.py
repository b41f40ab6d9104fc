"""Lays out pictures with frames and captions in rows and columns.

All sizes are computed from the pictures and their texts, so that texts fit and no space is left over.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from .lettering import POINTS_PER_INCH, use_fonts, wrapped


# Also told apart by people who do not see red or green: bluish green and vermilion of Okabe and Ito's palette.
MARK_COLORS = {True: "#009e73", False: "#d55e00"}
# Besides the colour, a sign.
MARKS = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}"}
# In points.
CAPTION_SIZE, HEADING_SIZE, MARK_SIZE = 8, 9, 10
FRAME_WIDTH, PAD = 4, 5
# Of a line of text, relative to the font size.
LINE_HEIGHT = 1.4
# In inches: between the columns, between the rows and around the figure, and the room for a mark.
COLUMN_GAP, ROW_GAP, MARGIN, MARK_HEIGHT = 0.12, 0.16, 0.06, 0.25
# Relative to the median height of the pictures at the width of a column: taller ones are reduced.
TALLEST = 1.25
DOTS_PER_INCH = 150


@dataclass
class Picture:
    """A picture of a figure.

    Args:
        image (`PIL.Image.Image`): Of any size.
        mark (`bool`, *optional*): True for a green frame with a tick, False for a red one with a cross.
        caption (`str`), heading (`str`): Texts below and above it.
        frame (`str`, *optional*): Colour of a frame without a sign, for a picture without a mark.
    """

    image: Image.Image
    mark: bool | None = None
    caption: str = ""
    heading: str = ""
    frame: str | None = None

    @property
    def ratio(self) -> float:
        return self.image.height / self.image.width


def picture_figure(
    rows: Sequence[Sequence[Picture | None]],
    width: float,
    font_size: float = CAPTION_SIZE,
    headings: Sequence[str] = (),
    caption_width: float | None = None,
) -> Figure:
    """Draws pictures in rows and columns. Those of a row stand on one line, with their captions below it.

    Args:
        rows (`Sequence` of `Sequence[Picture | None]`):
            The pictures; None leaves a gap.
        width (`float`):
            Of a column, in inches.
        font_size (`float`, *optional*, defaults to 8):
            Of the captions, in points.
        headings (`Sequence[str]`, *optional*):
            Of the columns.
        caption_width (`float`, *optional*):
            In inches; by default that of a column. A caption may be wider if those beside it are empty.
    """
    drawn = [[picture and with_lines(picture, width, font_size, caption_width) for picture in row] for row in rows]
    headings = [wrapped(heading, width, HEADING_SIZE, "bold") for heading in headings]
    tallest = TALLEST * np.median([picture.ratio for row in drawn for picture in row if picture is not None])
    parts = [row_heights(row, width, tallest, font_size) for row in drawn]
    columns, top = max(len(headings), *map(len, drawn)), MARGIN + text_height(headings, HEADING_SIZE)
    height = top + sum(map(sum, parts)) + ROW_GAP * (len(rows) - 1) + MARGIN
    figure = Figure(figsize=(columns * (width + COLUMN_GAP) - COLUMN_GAP + 2 * MARGIN, height))
    middles = [MARGIN + column * (width + COLUMN_GAP) + width / 2 for column in range(columns)]
    for middle, heading in zip(middles, headings):
        place = {"x": middle / figure.get_figwidth(), "y": 1 - (top - PAD / POINTS_PER_INCH) / height}
        style = {"weight": "bold", "fontsize": HEADING_SIZE, "parse_math": False}
        figure.text(s=heading, **place, ha="center", va="bottom", **style)
    for row, (above, there, below) in zip(drawn, parts):
        top += above + there
        for middle, picture in zip(middles, row):
            if picture is not None:
                draw_picture(add_cell(figure, middle, top, picture.ratio, width, tallest), picture, font_size)
        top += below + ROW_GAP
    return use_fonts(figure)


def with_lines(picture: Picture, width: float, font_size: float, caption_width: float | None) -> Picture:
    """Breaks the lines of a picture's texts."""
    caption = wrapped(picture.caption, caption_width or width, font_size)
    return replace(picture, caption=caption, heading=wrapped(picture.heading, width, HEADING_SIZE))


def row_heights(
    row: Sequence[Picture | None], width: float, tallest: float, font_size: float
) -> tuple[float, float, float]:
    """Heights in inches of the headings, the pictures and the captions of a row."""
    there = [picture for picture in row if picture is not None]
    return (
        text_height([picture.heading for picture in there], HEADING_SIZE),
        max([MARK_HEIGHT, *(width * min(tallest, picture.ratio) for picture in there)]),
        text_height([picture.caption for picture in there], font_size),
    )


def text_height(texts: Iterable[str], font_size: float) -> float:
    """Height in inches of the text with the most lines, and of its distance to the picture."""
    lines = max((text.count("\n") + 1 for text in texts if text), default=0)
    return (lines > 0) * (PAD + lines * LINE_HEIGHT * font_size) / POINTS_PER_INCH


def add_cell(figure: Figure, middle: float, bottom: float, ratio: float, width: float, tallest: float) -> Axes:
    """Adds axes of the size of a picture.

    Args:
        middle (`float`), bottom (`float`): Of the picture, in inches from the left and from the top of the figure.
        ratio (`float`): Its height divided by its width.
        width (`float`), tallest (`float`): Its largest width, in inches, and its largest height relative to that.
    """
    height = width * min(tallest, ratio)
    # The mark of a flat picture reaches below it.
    bottom -= max(0, MARK_HEIGHT - height)
    return add_axes(figure, middle - height / ratio / 2, bottom - height, height / ratio, height)


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Adds axes, with sizes in inches, from the upper left corner of the figure."""
    inches = figure.get_size_inches()
    return figure.add_axes((left / inches[0], 1 - (top + height) / inches[1], *(width, height) / inches))


def draw_picture(cell: Axes, picture: Picture, font_size: float = CAPTION_SIZE) -> None:
    """Draws a picture with its frame, mark and texts, in no more pixels than are seen."""
    image = picture.image.convert("RGB")
    inches = cell.get_position().size * cell.figure.get_size_inches()
    image.thumbnail(np.ceil(2 * DOTS_PER_INCH * inches), Image.Resampling.LANCZOS)
    is_enlarged = image.width < DOTS_PER_INCH * inches[0]
    cell.imshow(image, interpolation="bicubic" if is_enlarged else "auto")
    cell.set(xticks=[], yticks=[])
    cell.set_title(picture.heading, fontsize=HEADING_SIZE, pad=PAD, parse_math=False)
    cell.set_xlabel(picture.caption, fontsize=font_size, labelpad=PAD, parse_math=False)
    mark, color = picture.mark, picture.frame or "none"
    cell.spines[:].set(edgecolor=color if mark is None else MARK_COLORS[mark], linewidth=FRAME_WIDTH)
    if mark is not None:
        box = {"boxstyle": "square,pad=0.2", "facecolor": MARK_COLORS[mark], "edgecolor": "none"}
        cell.annotate(
            MARKS[mark], (0, 1), (2, -2), "axes fraction", "offset points", color="white", weight="bold", bbox=box,
            ha="left", va="top", fontsize=MARK_SIZE
        )


__all__ = ["Picture", "add_axes", "draw_picture", "picture_figure", "text_height"]
