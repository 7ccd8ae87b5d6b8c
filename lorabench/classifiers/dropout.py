"""Dropout whose masks follow from the member's seed and the step alone, on any device and in any stack."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorabench.errors import LorabenchError
from lorabench.training import draw_keys, keep_mask

__all__ = ["SeededDropout", "set_dropout_keys"]

_LARGEST = 0.9999  # a share is met to 2⁻¹⁶


class SeededDropout(nn.Module):
    """Zeroes each entry with probability p and scales the rest by 1/(1-p) while training.

    The mask follows from the buffer `key`, so members of a stack draw what each would draw alone. Without a new key
    (`set_dropout_keys`) it repeats.
    """

    key: Tensor

    def __init__(self, p: float | int) -> None:
        super().__init__()
        if not 0 <= p <= _LARGEST:
            raise LorabenchError(f"classifier.dropout={p}: a probability from 0 to {_LARGEST} is needed")
        self.p = p
        self.register_buffer("key", torch.zeros((), dtype=torch.int32), persistent=False)

    def forward(self, x: Float[Tensor, "batch f"]) -> Float[Tensor, "batch f"]:
        """The entries that stay, scaled; x itself in evaluation."""
        if not self.training or self.p == 0:
            return x
        return x * keep_mask(self.key, x.shape[0], x.shape[1], self.p, x.dtype)


def set_dropout_keys(network: nn.Module, seed: int, step: int) -> None:
    """Give the dropout layers of one member the keys of a training step."""
    layers = [module for module in network.modules() if isinstance(module, SeededDropout)]
    if layers:
        keys = draw_keys(torch.tensor([seed]), [step], range(len(layers)))
        for layer, key in zip(layers, keys[0, :, 0], strict=True):
            layer.key.copy_(key)
