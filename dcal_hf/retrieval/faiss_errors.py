"""Errors of faiss as one sentence that names the index."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def naming_index(factory: str, action: str) -> Iterator[None]:
    """Converts an error of faiss to one that names the index, and what to do.

    Args:
        factory (`str`): The faiss factory string of the index.
        action (`str`): What the index cannot do if the block fails, for the message.

    Raises:
        ValueError: If faiss raises an error in the block.
    """
    try:
        yield
    except RuntimeError as error:
        raise ValueError(
            f"An index {factory!r} cannot {action} ({faiss_reason(error)}): give more embeddings, or choose another "
            "index, such as 'Flat'."
        ) from error


def faiss_reason(error: RuntimeError) -> str:
    """The message of an error of faiss without the source location."""
    return re.split(r" at \S+:\d+: (?:Error: )?(?:'.*' failed: )?", str(error))[-1]


__all__ = ["faiss_reason", "naming_index"]
