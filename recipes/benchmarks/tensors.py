"""Records the tensors that operations allocate."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Made:
    """A tensor: its operation, shape and size in bytes."""

    operation: str
    shape: tuple[int, ...]
    size: int


class MadeTensors(TorchDispatchMode):
    """Records every tensor that an operation allocates and returns while it is active, in forward and backward.

    Views of its arguments, and arguments that it changes, are no new ones. What a fused kernel uses within itself is
    no operation's tensor and is not seen.
    """

    def __init__(self):
        super().__init__()
        self.made: set[Made] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        held = {tensor.untyped_storage().data_ptr() for tensor in tensors_in((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in held:
                self.made.add(Made(func.overloadpacket.__name__, tuple(tensor.shape), storage.nbytes()))
        return result


def tensors_in(nested: object) -> list[Tensor]:
    """The tensors of nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def made_tensors(work: Callable[[], None]) -> set[Made]:
    """All tensors that `work` allocates."""
    with MadeTensors() as mode:
        work()
    return mode.made
