"""Formats errors of other libraries and content of files for one-line messages."""

import re


MAX_CHARACTERS = 500


def one_line(text: object) -> str:
    """Replaces line breaks, and truncates the text to 500 characters."""
    line = re.sub(r"\s*[\r\n]\s*", " ", str(text)).strip()
    return line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]}..."


def reason_of(error: BaseException) -> str:
    """The message of an error of another library in one line, or its type if it has no message.

    For operating system errors it is only the reason, without number and path.
    """
    system = error.strerror if isinstance(error, OSError) else None
    return one_line(system or error).rstrip(".:") or type(error).__name__


__all__ = ["one_line", "reason_of"]
