"""Text in figures: any script is rendered or spelled out, and lines fit."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dcal_hf.visualization import (
    attention_figure,
    confusion_figure,
    contact_sheet,
    lettering,
    ranked_list,
    save_figure,
)


BLANK = Image.new("RGB", (8, 8))


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


@pytest.mark.parametrize(
    "text, lines",
    [
        ("wren", ["wren"]),
        ("Black_footed_Albatross 0.93", ["Black_", "footed_", "Albatross", "0.93"]),
        ("a.jpg\nKing-fisher-bird", ["a.jpg", "King-", "fisher-", "bird"]),
        ("Oystercatcher", ["Oystercatc", "her"]),
        ("\u9e1f" * 7, ["\u9e1f" * 5, "\u9e1f" * 2]),
        ("", [""]),
    ],
)
def test_lines_break_between_words(monkeypatch, text, lines):
    monkeypatch.setattr(lettering, "font_of", lambda character: "DejaVu Sans")
    # 10 columns of 0.6 times the font size.
    assert lettering.wrapped(text, 10 * 0.6 * 7 / 72, 7).split("\n") == lines


def test_a_caption_of_common_width_fits_its_line():
    figure = Figure(dpi=72)
    line = lettering.wrapped("Black-footed albatross, seen from the side " * 3, 3.0, 7).split("\n")[0]
    assert figure.text(0, 0, line, fontsize=7).get_window_extent().width <= 3 * 72
