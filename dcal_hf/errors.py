"""What other libraries and files say, for messages of ours."""

import re


MAX_CHARACTERS = 500


def one_line(text: object) -> str:
    """A text without line breaks, cut to 500 characters."""
    line = re.sub(r"\s*[\r\n]\s*", " ", str(text)).strip()
    return line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]}..."


def reason_of(error: BaseException) -> str:
    """What another library says is wrong, in one line; the type of the error if it says nothing.

    Of an error of the system it is the reason alone, without number and path.
    """
    system = error.strerror if isinstance(error, OSError) else None
    return one_line(system or error).rstrip(".:") or type(error).__name__


__all__ = ["one_line", "reason_of"]
