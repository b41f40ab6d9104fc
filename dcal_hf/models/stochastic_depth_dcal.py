"""Stochastic depth for every encoder family."""

from torch import Tensor, nn


class StochasticDepth:
    """Forward hook that drops a residual branch for whole samples (https://huggingface.co/papers/1603.09382).

    A hook on attention and FFN rather than a module, so that it works for every encoder family and the weights keep
    their names. The layer scale that follows commutes with it.
    """

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if not module.training:
            return output
        if isinstance(output, tuple):
            return (self.drop(output[0]), *output[1:])
        return self.drop(output)

    def drop(self, x: Tensor) -> Tensor:
        """Sets each image of a residual (B, ...) to zero with the given rate, and scales the others."""
        keep = x.new_empty(x.size(0), *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


__all__ = ["StochasticDepth"]
