"""Dropout whose masks follow from the member's seed and the step alone, on any device and in any stack."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lorabench.errors import LorabenchError

__all__ = ["SeededDropout", "dropout_keys", "dropout_mask", "set_dropout_keys"]

_LARGEST = 0.9999  # a share is met to 2⁻¹⁶
_GOLDEN = -1640531527  # 2654435769 as int32: Knuth's multiplicative constant
_MIX_1, _MIX_2 = 0x21F0AAAD, 0x735A2D97  # Ellis & Wellons, low-bias 32-bit hash (hash-prospector, 2023)


def _mix(v: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """A bijective 32-bit hash, in place; int32 products wrap, and the masks make the right shifts logical."""
    v ^= (v >> 16).bitwise_and_(0xFFFF)
    v *= _MIX_1
    v ^= (v >> 15).bitwise_and_(0x1FFFF)
    v *= _MIX_2
    v ^= (v >> 15).bitwise_and_(0x1FFFF)
    return v


class SeededDropout(nn.Module):
    """Zeroes each entry with probability p and scales the rest by 1/(1-p) while training.

    The mask is a counter-based hash (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") of the
    buffer `key` and the entry's position, so members of a stack draw what each would draw alone. One 32-bit hash
    serves two entries: p is met to 2⁻¹⁶. Without a new key (`set_dropout_keys`) the mask repeats.
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
        return x * dropout_mask(self.key, x.shape[0], x.shape[1], self.p, x.dtype)


def dropout_mask(
    key: Int[Tensor, "*members"], batch: int, f: int, p: float | int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*members batch f"]:
    """Zero for the entries that go and 1/(1-p) for those that stay, for one key or for every member's."""
    half = (batch * f + 1) // 2
    counter = torch.arange(half, dtype=torch.int32, device=key.device).mul_(_GOLDEN)
    bits = _mix(counter + key.unsqueeze(-1))
    # Each half of a hash is a number of its own, from -2¹⁵. Clamping to two neighbours is a comparison whose
    # result is a number at once: torch's own comparison and its conversion take five times as long on a CPU.
    least = round(p * 2**16) - 2**15
    mask = bits.view(torch.int16).to(dtype).clamp(least - 1, least).sub_(least - 1).mul_(1 / (1 - p))
    return mask[..., : batch * f].reshape(*key.shape, batch, f)


def dropout_keys(
    seeds: Int[Tensor, " members"], steps: Sequence[int], layers: Sequence[int]
) -> Int[Tensor, "steps layers members"]:
    """The int32 keys of some dropout layers, by their number in the network, of every member at some steps."""
    when = torch.tensor([step & 0x7FFFFFFF for step in steps], dtype=torch.int32, device=seeds.device)
    where = torch.tensor(layers, dtype=torch.int32, device=seeds.device)
    key = _mix(seeds.to(torch.int32) * 0x2C1B3C6D + 0x1B56C4E9)
    key = _mix(key + when[:, None, None])
    return _mix(key + where[:, None] * 0x05F356A1)


def set_dropout_keys(network: nn.Module, seed: int, step: int) -> None:
    """Give the dropout layers of one member the keys of a training step."""
    layers = [module for module in network.modules() if isinstance(module, SeededDropout)]
    if layers:
        keys = dropout_keys(torch.tensor([seed]), [step], range(len(layers)))
        for layer, key in zip(layers, keys[0, :, 0], strict=True):
            layer.key.copy_(key)
