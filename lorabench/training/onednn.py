"""Products of one member on a CPU by oneDNN, where it is the faster."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["ONEDNN", "by_onednn"]

# Private to torch; plain matmul serves where it is not there.
_PACKET = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None  # type: ignore[no-untyped-call]
ONEDNN: Any = None if _PACKET is None else _PACKET.default  # the overload itself: none is looked for at every call
"""a @ weightᵀ + bias as ONEDNN(a, weight, bias, "none", [], ""); None where torch lacks it."""
_LARGE = 2**18


def by_onednn(a: Tensor, multiplications: int) -> bool:
    """Whether a product of one member goes to oneDNN: its start, of some 10 µs, must be paid back (measured).

    It is the way of torch's own compiler: torch's matmul goes to MKL, which keeps processors of other makers from
    AVX-512 (measured: 160 against 90 GFLOP/s a core).
    """
    return a.device.type == "cpu" and a.dtype == torch.float32 and ONEDNN is not None and multiplications >= _LARGE
