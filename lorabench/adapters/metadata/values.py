"""What only the weights say: NaN, infinity, and modules that were never trained. Needs torch, and reads the file."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from lorabench.adapters.kinds.base import BESIDE
from lorabench.adapters.reading.table import Table

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ValueReport", "read_values"]

ValueReport = dict[str, list[str]]
""""nan" and "infinite": keys; "untrained": modules."""


def read_values(table: Table) -> ValueReport:
    """Which tensors of a file hold NaN or infinity, and which modules' ΔW is zero since one of their factors is.

    Args:
        table: of the file.

    Raises:
        LorabenchError: its weights cannot be read.
    """
    import torch

    from lorabench.adapters.reading.container import read_container

    tensors = read_container(table.file).tensors
    known = {key: one.to(torch.float32) for key, one in tensors.items() if _is_read(one)}
    untrained = [
        row.module
        for row in table.rows
        if any(not bool(known[key].any()) for part, key in row.keys.items() if part not in BESIDE and key in known)
    ]
    return {
        "nan": _where(known, torch.isnan),
        "infinite": _where(known, torch.isinf),
        "untrained": untrained,
    }


def _where(tensors: Mapping[str, "Tensor"], test: "Callable[[Tensor], Tensor]") -> list[str]:
    return [key for key, tensor in tensors.items() if bool(test(tensor).any())]


def _is_read(tensor: "Tensor") -> bool:
    import torch

    return tensor.is_floating_point() and tensor.dtype != torch.float4_e2m1fn_x2
