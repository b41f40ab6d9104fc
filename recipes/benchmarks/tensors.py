"""Records the tensors that operations allocate."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Made:
    """A tensor: its operation, shape and size in bytes."""

    operation: str
    shape: tuple[int, ...]
    size: int


@dataclass
class MadeTensors(TorchDispatchMode):
    """Records every tensor that an operation allocates and returns while it is active, in forward and backward.

    Views of its arguments, and arguments that it changes, are no new ones. What a fused kernel uses within itself is
    no operation's tensor and is not seen.
    """

    made: set[Made] = field(default_factory=set)

    def __post_init__(self):
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        held = {tensor.untyped_storage().data_ptr() for tensor in tensors_in((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            if tensor.untyped_storage().data_ptr() not in held:
                size = tensor.untyped_storage().nbytes()
                self.made.add(Made(func.overloadpacket.__name__, tuple(tensor.shape), size))
        return result


def tensors_in(nested: object) -> list[Tensor]:
    """The tensors of nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def made_tensors(work: Callable[[], None]) -> set[Made]:
    """All tensors that `work` allocates."""
    with MadeTensors() as mode:
        work()
    return mode.made


def is_attention_map(made: Made, tokens: int) -> bool:
    """Whether a tensor has an entry for each pair of `tokens` tokens, or for each of them and twice as many keys.

    Any order of dimensions counts, also where some are one: `(B, H, N, 2 N)` and `(B H, N N)` are maps.
    """
    return sum(size >= tokens for size in made.shape) > 1 or any(size >= tokens**2 for size in made.shape)
