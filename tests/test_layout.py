"""Pictures of any shape with texts of any length: nothing overlaps, is distorted or is left out."""

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from dcal_hf.visualization import attention_figure, contact_sheet, picture_table, ranked_list

from pictures import count_overlaps, gray


SHAPES = [(30, 40), (40, 30), (64, 64), (60, 120), (800, 40), (1200, 900)]
LONG = "Plantae_Tracheophyta_Magnoliopsida_Taraxacum_officinale 0.91"
TEXTS = ["wren", LONG, "W" * 40, "", f"{LONG}\ntrue: {LONG}\nIMG_20240101.jpg", "0.2"]
IMAGES = [gray(*shape) for shape in SHAPES]
FIGURES = {
    "sheet": lambda: contact_sheet(IMAGES * 2, TEXTS * 2, [True, False, None] * 4),
    "one": lambda: contact_sheet(IMAGES[:1], [LONG]),
    "table": lambda: picture_table(
        [[(image, text, mark) for mark in (None, False)] for image, text in zip(IMAGES, TEXTS)], [LONG, "W" * 60]
    ),
    "ranked": lambda: ranked_list(
        IMAGES[:2], [IMAGES, IMAGES[2:]], [np.arange(6) / 7e5, np.arange(4)], titles=[TEXTS, TEXTS[2:]],
        query_title=[LONG, ""], score_name="distance"
    ),
    "attention": lambda: attention_figure(IMAGES, np.ones((6, 4)), (2, 2), [[0]] * 6, [LONG * 3, *TEXTS[1:]]),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_pictures_and_texts_do_not_overlap(draw):
    figure = draw()
    figure.draw_without_rendering()
    texts = [text for cell in figure.axes for text in (cell.title, cell.xaxis.label)]
    boxes = [text.get_window_extent() for text in [*texts, *figure.texts] if text.get_text()]
    boxes += [cell.get_window_extent() for cell in figure.axes]
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
    assert count_overlaps(boxes) == 0


def test_texts_of_a_wide_figure_are_legible_on_a_web_page():
    """GitHub shows a README 830 pixels wide, and scales wider figures down."""
    attention = attention_figure([gray(8, 8)], np.ones((1, 4)), (2, 2), [[0]], [LONG])
    for figure in (attention, ranked_list(gray(8, 8), [gray(8, 8)] * 6, np.arange(6), titles=TEXTS)):
        texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        assert min(text.get_fontsize() for text in texts) * 830 / figure.get_figwidth() / 72 >= 11


def test_long_ranked_lists_continue_below():
    figure = ranked_list([gray(8, 8)] * 2, [[gray(8, 8)] * 7, []], [np.arange(7), []])
    places = [cell.get_position() for cell in figure.axes]
    query, *matches, second = [(round(place.x0, 3), round(place.y0, 3)) for place in places]
    assert len({query[1], *(y for _, y in matches[:5])}) == 1 and matches[5][1] == matches[6][1] < query[1]
    assert [x for x, _ in matches[5:]] == [x for x, _ in matches[:2]]
    assert second[0] == query[0] and second[1] < matches[6][1]


def test_pictures_are_not_distorted_and_those_of_a_row_stand_on_one_line():
    figure = contact_sheet(IMAGES, [""] * 6)
    places = [cell.get_window_extent() for cell in figure.axes]
    assert [box.height / box.width for box in places] == pytest.approx([h / w for w, h in SHAPES])
    # The flat one is higher, to have room for its mark.
    assert [box.y0 for box in places[:4]] == pytest.approx([places[5].y0] * 4) and places[4].y0 > places[5].y0


def test_headings_are_next_to_the_pictures():
    figure = picture_table([[(gray(8, 8), "", None)] * 2], [LONG, "DCAL"])
    figure.draw_without_rendering()
    places = [text.get_window_extent() for text in figure.texts]
    assert places[0].height > 1.5 * places[1].height and places[0].y0 == pytest.approx(places[1].y0, abs=2)


def test_a_portrait_among_landscapes_does_not_stretch_its_row():
    images = [gray(40, 30)] * 5 + [gray(30, 60)]
    landscape, *_, portrait = (cell.get_window_extent() for cell in contact_sheet(images, [""] * 6).axes)
    assert portrait.height == pytest.approx(1.25 * landscape.height)
    all_portraits = contact_sheet([gray(30, 60)] * 2, [""] * 2).axes
    assert all_portraits[0].get_window_extent().width == pytest.approx(landscape.width)


def test_large_photographs_are_reduced_to_what_is_seen():
    """Sixty photographs of 12 megapixels would take 2 GB."""
    figure = contact_sheet([Image.new("RGB", (4000, 3000))], ["large"])
    height, width, _ = figure.axes[0].images[0].get_array().shape
    shown = figure.axes[0].get_position().size * figure.get_size_inches() * 150
    assert shown[0] <= width <= 2 * shown[0] + 1 and width / height == pytest.approx(4 / 3, rel=0.01)
