"""Random numbers that follow from keys alone: the same on any device, in any stack, in any order.

Counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): entry i of a draw is a hash of the
draw's key and i, so a member of a stack draws what it would draw by itself.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

__all__ = ["draw_keys", "epoch_order", "keep_mask", "normal", "seeded"]

_GOLDEN = -1640531527  # 2654435769 as int32: Knuth's multiplicative constant
_MIX_1, _MIX_2 = 0x21F0AAAD, 0x735A2D97  # Ellis & Wellons, low-bias 32-bit hash (hash-prospector, 2023)


_GLOBAL = threading.Lock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generator, from `seed` on, for one thread at a time; it is left as it was."""
    with _GLOBAL, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def epoch_order(seed: int, epoch: int, n: int) -> Int64[Tensor, " n"]:
    """The order in which member `seed` sees its n training rows in one epoch."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(n, generator=generator)


def _mix(v: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """A bijective 32-bit hash, in place; int32 products wrap, and the masks make the right shifts logical."""
    v ^= (v >> 16).bitwise_and_(0xFFFF)
    v *= _MIX_1
    v ^= (v >> 15).bitwise_and_(0x1FFFF)
    v *= _MIX_2
    v ^= (v >> 15).bitwise_and_(0x1FFFF)
    return v


def draw_keys(
    seeds: Int[Tensor, " members"], steps: Sequence[int], draws: Sequence[int]
) -> Int32[Tensor, "steps draws members"]:
    """The keys of some draws, by their number within a step, of every member at some steps."""
    when = torch.tensor([step & 0x7FFFFFFF for step in steps], dtype=torch.int32, device=seeds.device)
    where = torch.tensor(draws, dtype=torch.int32, device=seeds.device)
    key = _mix(seeds.to(torch.int32) * 0x2C1B3C6D + 0x1B56C4E9)
    key = _mix(key + when[:, None, None])
    return _mix(key + where[:, None] * 0x05F356A1)


def _bits(key: Int[Tensor, "*members"], count: int) -> Int32[Tensor, "*members {count}"]:
    counter = torch.arange(count, dtype=torch.int32, device=key.device).mul_(_GOLDEN)
    return _mix(counter + key.unsqueeze(-1))


def keep_mask(
    key: Int[Tensor, "*members"], batch: int, f: int, p: float | int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*members {batch} {f}"]:
    """Zero with probability p, else 1/(1-p), for one key or for every member's; p is met to 2⁻¹⁶."""
    bits = _bits(key, (batch * f + 1) // 2)
    # Each half of a hash is a number of its own, from -2¹⁵.
    least, drawn = round(p * 2**16) - 2**15, bits.view(torch.int16)
    if key.device.type == "cpu":
        # Clamping to two neighbours is a comparison whose result is a number at once: torch's own comparison and its
        # conversion take five times as long on a CPU.
        mask = drawn.to(dtype).clamp(least - 1, least).sub_(least - 1).mul_(1 / (1 - p))
    else:
        mask = (drawn >= least).to(dtype).mul_(1 / (1 - p))
    return mask[..., : batch * f].reshape(*key.shape, batch, f)


def normal(
    key: Int[Tensor, "*members"], batch: int, f: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*members {batch} {f}"]:
    """Standard normal numbers, for one key or for every member's (Box & Muller 1958); none is beyond 6.8.

    The bits are the same on any device, their logarithms and cosines up to rounding.
    """
    pairs = (batch * f + 1) // 2
    uniform = _bits(key, 2 * pairs).to(dtype).mul_(2**-32).add_(0.5)
    radius = uniform[..., :pairs].clamp_min(2**-33).log_().mul_(-2).sqrt_()
    angle = uniform[..., pairs:] * (2 * math.pi)
    found = torch.cat([radius * angle.cos(), radius * angle.sin()], -1)
    return found[..., : batch * f].reshape(*key.shape, batch, f)
