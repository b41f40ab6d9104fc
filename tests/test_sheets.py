"""Figures of many photographs: contact sheets, confusion matrices, several models side by side."""

import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessor

from dcal_hf.visualization import attention_comparison, confusion_figure, contact_sheet, picture_table

from pictures import MARKS, brightness, count_overlaps, gray, mark, one_hot


def test_a_contact_sheet_marks_right_and_wrong_predictions():
    captions = [f"{number}\nwren $0.50" for number in range(8)]
    marks = [True, False, *[None] * 6]
    figure = contact_sheet([gray(20, 10 + number) for number in range(8)], captions, marks)
    assert [cell.get_xlabel() for cell in figure.axes] == captions
    assert [mark(cell) for cell in figure.axes[:3]] == [MARKS[True], MARKS[False], None]
    with pytest.raises(ValueError, match="got 2 images, 1 captions and 2 marks"):
        contact_sheet([gray(2, 2)] * 2, ["one"])


def test_a_confusion_matrix_is_normalised_by_true_class():
    figure = confusion_figure(np.array([[3, 1], [0, 0]]), ["wren", "robin"])
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {((0, 0), "3"), ((1, 0), "1")}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["wren", "robin"]


def test_models_are_compared_on_the_same_photographs():
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    photographs = [gray(40, 20), gray(20, 30)]
    rollouts = {name: np.stack([one_hot(patch, 16)] * 2) for name, patch in (("baseline", 0), ("DCAL", 15))}
    figure = attention_comparison(
        photographs, rollouts, dict.fromkeys(rollouts, (4, 4)), dict.fromkeys(rollouts, processor)
    )
    assert len(figure.axes) == 6
    for row, photograph in zip((figure.axes[:3], figure.axes[3:]), photographs):
        plain, first, last = (np.asarray(cell.images[0].get_array()) for cell in row)
        assert plain.shape[:2] == photograph.size[::-1] and (plain == 100).all()
        places = [np.unravel_index(brightness(Image.fromarray(x)).argmax(), x.shape[:2]) for x in (first, last)]
        assert max(places[0]) < 12 and places[1][0] > photograph.height // 2 and places[1][1] > photograph.width // 2


def test_many_classes_are_shown_without_names_but_the_confused_ones():
    names = [f"{number}" + "x" * 50 for number in range(61)]
    matrix = 9 * np.eye(61, dtype=int)
    matrix[3, 50], matrix[50, 7], matrix[20, 3] = 5, 4, 1
    axes, _, whole = confusion_figure(matrix, names).axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert [int(label.split("x")[0]) for label in labels] == [3, 7, 20, 50] and {*map(len, labels)} == {40}
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        *(((place, place), "9") for place in range(4)), ((3, 0), "5"), ((1, 3), "4"), ((0, 2), "1")
    }
    # A row has the share of all images of its class.
    assert axes.images[0].get_array()[2, 0] == pytest.approx(0.1)
    np.testing.assert_allclose(whole.images[0].get_array(), matrix / matrix.sum(axis=1, keepdims=True))
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 5, (300, 300))
    counts[250, 251], counts[100, 12] = 9, 8
    axes = confusion_figure(counts, [*map(str, range(300))]).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 30 and {"250", "251", "100", "12"} <= {*labels}


def test_long_names_are_cut_where_they_are_alike():
    taxon = "Animalia_Chordata_Aves_Passeriformes_Corvidae_Corvus"
    figure = confusion_figure(np.eye(3, dtype=int), [f"{taxon}_corax", f"{taxon}_corone", "wren"])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    expected = ["Animalia_Chordata_Av…rvidae_Corvus_corax", "Animalia_Chordata_Av…vidae_Corvus_corone", "wren"]
    assert labels == expected


@pytest.mark.parametrize("count", [2, 40, 41])
def test_names_of_a_confusion_matrix_do_not_overlap(count):
    figure = confusion_figure(np.eye(count, dtype=int), ["W" * 50] * count)
    figure.draw_without_rendering()
    axes, bar, *whole = figure.axes
    ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    labels = [part.label for cell in figure.axes for part in (cell.xaxis, cell.yaxis) if part.label.get_text()]
    boxes = [text.get_window_extent() for text in [*ticks, *labels, *axes.texts, *(cell.title for cell in whole)]]
    # Numbers of the bar, which need no test, are beside it.
    boxes += [cell.get_window_extent() for cell in figure.axes if cell is not axes]
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    assert count_overlaps(boxes) == 0


def test_large_counts_fit_their_cells():
    axes = confusion_figure(12345 * np.eye(20, dtype=int), [*map(str, range(20))]).axes[0]
    axes.figure.draw_without_rendering()
    assert max(text.get_window_extent().width for text in axes.texts) < axes.get_window_extent().width / 20


def test_a_table_with_missing_entries():
    figure = picture_table([[(gray(8, 8), "a$b$", True), None], [(gray(8, 4), "c", None)] * 2], ["mistaken", "right"])
    assert [text.get_text() for text in figure.texts] == ["mistaken", "right"]
    assert [cell.get_xlabel() for cell in figure.axes] == ["a$b$", "c", "c"]
    assert [mark(cell) for cell in figure.axes] == [MARKS[True], None, None]
    for rows in ([], [[None] * 3]):
        with pytest.raises(ValueError, match=r"A table of 2 columns needs a picture or None .* got rows of \["):
            picture_table(rows, ["one", "two"])
