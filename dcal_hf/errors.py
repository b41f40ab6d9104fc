"""Formats errors of other libraries, content of files and counts for one-line messages."""

import re


MAX_CHARACTERS = 500


def one_line(text: object) -> str:
    """Replaces line breaks, and truncates the text to 500 characters."""
    line = re.sub(r"\s*[\r\n]\s*", " ", str(text)).strip()
    return line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]}..."


def first_line(error: BaseException) -> str:
    """The first line of the message of an error, for libraries that explain at length, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def reason_of(error: BaseException) -> str:
    """The message of an error of another library in one line, or its type if it has no message.

    For operating system errors it is only the reason, without number and path.
    """
    system = error.strerror if isinstance(error, OSError) else None
    return one_line(system or error).rstrip(".:") or type(error).__name__


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number and its noun; the plural ends in an s unless it is given."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or f'{noun}s'}"


__all__ = ["counted", "first_line", "one_line", "reason_of"]
