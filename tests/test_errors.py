"""Messages of other libraries in one line."""

import pytest

from dcal_hf.errors import first_line, one_line, reason_of


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("Cannot reach the Hub.\n\nRequest ID: 17"), "Cannot reach the Hub."),
        (ConnectionError("\n  refused\nagain"), "refused"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_first_line(error, line):
    assert first_line(error) == line


def test_the_reason_is_in_one_line_and_without_path():
    assert reason_of(FileNotFoundError(2, "No such file or directory", "bird.jpg")) == "No such file or directory"
    assert reason_of(ValueError("no\r\n  image:")) == "no image"
    assert reason_of(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_long_text_is_truncated():
    assert len(one_line("x" * 10_000)) == 503
