"""Layers whose random numbers follow from a member's seed and the step alone, on any device and in any stack."""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorabench.options import AtLeast, AtMost, check_arguments
from lorabench.training.randomness import draw_keys, keep_mask, normal

__all__ = ["Keyed", "Probability", "SeededDropout", "SeededNoise", "set_keys"]

Probability = Annotated[float | int, AtLeast(0), AtMost(0.9999)]
"""Of zeroing an entry, which is met to 2⁻¹⁶."""


class Keyed(nn.Module):
    """Draws from the buffer `key`, so that members of a stack draw what each would draw alone.

    Without a new key (`set_keys`) a draw repeats.
    """

    key: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("key", torch.zeros((), dtype=torch.int32), persistent=False)


class SeededDropout(Keyed):
    """Zeroes each entry with probability p and scales the rest by 1/(1-p) while training.

    Args:
        p: the probability.

    Raises:
        LorabenchError: p is no probability below 1.
    """

    def __init__(self, p: Probability) -> None:
        super().__init__()
        check_arguments(SeededDropout, {"p": p}, "")
        self.p = p

    def forward(self, x: Float[Tensor, "batch *rest n"]) -> Float[Tensor, "batch *rest n"]:
        """The entries that stay, scaled; x itself in evaluation."""
        if not self.training or self.p == 0:
            return x
        return x * keep_mask(self.key, x.shape[0], x.shape[1:].numel(), self.p, x.dtype).view_as(x)


class SeededNoise(Keyed):
    """Standard normal numbers of a tensor's shape, in training and in evaluation."""

    def forward(self, x: Float[Tensor, "batch f"]) -> Float[Tensor, "batch f"]:
        """Noise [batch, f], independent of what x holds."""
        return normal(self.key, x.shape[0], x.shape[1], x.dtype)


def set_keys(network: nn.Module, seed: int, step: int) -> None:
    """Give the keyed layers of one member the keys of a step."""
    layers = [module for module in network.modules() if isinstance(module, Keyed)]
    if layers:
        keys = draw_keys(torch.tensor([seed]), [step], range(len(layers)))
        for layer, key in zip(layers, keys[0, :, 0], strict=True):
            layer.key.copy_(key)
