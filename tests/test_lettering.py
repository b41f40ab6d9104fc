"""Text in figures: any script is rendered or spelled out, and lines fit."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dcal_hf.visualization import (
    attention_figure,
    confusion_figure,
    contact_sheet,
    ranked_list,
    save_figure,
)
from dcal_hf.visualization.lettering import wrapped as wrapped_text


BLANK = Image.new("RGB", (8, 8))


def wrapped(text, inches, weight="normal"):
    return wrapped_text(text, inches, 8, weight)


def drawn(figure, tmp_path):
    """Draws the figure. matplotlib warns if the font lacks a character, and tests treat warnings as errors."""
    save_figure(figure, tmp_path / "figure.png")
    return figure


def test_names_in_any_script_are_rendered_or_spelled_out(tmp_path):
    # The default font has Cyrillic and Arabic. U+1D81 is only in STIX, which matplotlib includes, and U+0378 is
    # unassigned.
    names = ["\u0432\u043e\u0440\u043e\u0431\u0435\u0439", "\u0643\u0644\u0628", "\u1d81", "wren\u3000\u0378 $x_$"]
    sheet = drawn(contact_sheet([BLANK] * 4, names), tmp_path)
    labels = [cell.xaxis.label for cell in sheet.axes if cell.images]
    assert [label.get_text() for label in labels] == [*names[:3], "wren \\u0378 $x_$"]
    assert len(labels[0].get_fontfamily()) == 1 and len(labels[2].get_fontfamily()) == 2
    matrix = drawn(confusion_figure(np.eye(4, dtype=int), names), tmp_path)
    assert [label.get_text() for label in matrix.axes[0].get_yticklabels()][3] == "wren \\u0378 $x_$"
    picture = {"rollouts": np.ones((1, 4)), "grid": (2, 2), "selected": [[0]]}
    drawn(attention_figure([BLANK], titles=names[2:3], **picture), tmp_path)
    drawn(ranked_list(BLANK, [BLANK], [1.0], titles=names[2:3], query_title=names[2]), tmp_path)


def rendered_width(text, weight="normal"):
    """In inches, at 8 points."""
    drawn_text = Figure(dpi=720).text(0, 0, text, fontsize=8, weight=weight, parse_math=False)
    return drawn_text.get_window_extent().width / 720


@pytest.mark.parametrize(
    "text, lines",
    [
        ("wren", ["wren"]),
        ("Black_footed_Albatross 0.93", ["Black_", "footed_", "Albatross", "0.93"]),
        ("a.jpg\nKing-fisher-bird", ["a.jpg", "King-", "fisher-", "bird"]),
        ("", [""]),
    ],
)
def test_lines_break_between_words(text, lines):
    assert wrapped(text, rendered_width("Albatross.")).split("\n") == lines


@pytest.mark.parametrize(
    "text",
    ["Black-footed albatross, from the side " * 2, "W" * 30, "i" * 60, "\u0416\u0443\u043a" * 10],
    ids=["words", "wide", "narrow", "cyrillic"],
)
@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_lines_are_full_but_fit(text, weight):
    lines = wrapped(text, 1.5, weight).split("\n")
    assert "".join(lines).replace(" ", "") == text.replace(" ", "") and len(lines) > 1
    # Kerning and hinting.
    assert all(rendered_width(line, weight) <= 1.53 for line in lines)
    first, second = lines[0], lines[1].split()[0]
    assert rendered_width(first + (second if " " in text else second[0]), weight) > 1.47


def test_a_line_break_in_a_class_name_is_a_space_in_a_confusion_matrix(tmp_path):
    matrix = drawn(confusion_figure(np.eye(2, dtype=int), ["great\ntit", "wren"]), tmp_path)
    assert [label.get_text() for label in matrix.axes[0].get_yticklabels()] == ["great tit", "wren"]


def test_the_codes_of_characters_are_not_broken():
    codes = "\\u0378" * 4
    assert wrapped("\u0378" * 4, rendered_width(codes) * 0.6) == "\\u0378\\u0378\n\\u0378\\u0378"


def test_a_column_narrower_than_a_character_has_one_in_each_line():
    assert wrapped("wren", 0.01) == "w\nr\ne\nn"
