"""Work that one of several processes does for all."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list


Result = TypeVar("Result")


def on_main_process(compute: Callable[[], Result]) -> Result:
    """Calls a function in the main process, and returns its result in all of them. All processes must call this.

    Args:
        compute (`Callable`): The function. Its result, or the error that it raises, is pickled.

    Raises:
        Exception: What `compute` raises, in all processes: otherwise the others would wait for the result.
    """
    outcome = [None, None]
    if PartialState().is_main_process:
        try:
            outcome = [compute(), None]
        except Exception as error:
            outcome = [None, error]
    result, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    return result


__all__ = ["on_main_process"]
