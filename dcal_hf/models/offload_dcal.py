"""Support for weights that accelerate offloads to CPU or disk, and loads only while their module runs."""

from contextlib import AbstractContextManager, nullcontext

from torch import nn
from transformers.utils import is_accelerate_available


if is_accelerate_available():
    from accelerate.utils import align_module_device


def at_hand(module: nn.Module) -> AbstractContextManager:
    """Loads a module's own offloaded parameters for code that uses them without calling the module.

    A plain function for modules without hooks, so that compilation traces through it.
    """
    return align_module_device(module) if hasattr(module, "_hf_hook") else nullcontext()


__all__ = ["at_hand"]
