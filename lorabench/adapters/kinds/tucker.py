"""A pair w_a, w_b of LyCORIS, with a Tucker core t [r, r, k, k] where it is a convolution's."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lorabench.adapters.kinds.base import Shapes, matrix_of

if TYPE_CHECKING:
    from jaxtyping import Float32
    from torch import Tensor

__all__ = ["low_rank", "unfold", "unfolded_entries"]


def low_rank(shapes: Shapes, i: int) -> tuple[int, int, int]:
    """Rows, rank and columns of pair i, by shapes.

    Raises:
        ValueError: they do not fit together.
    """
    a, b, core = shapes[f"w{i}_a"], shapes[f"w{i}_b"], shapes.get(f"t{i}")
    if core is None:
        (rows, rank), (other, cols) = matrix_of(a), matrix_of(b)
        if rank != other:
            raise ValueError("")
        return rows, rank, cols
    if len(a) != 2 or len(b) != 2 or len(core) < 3 or core[:2] != (a[0], b[0]) or min(a + b + core) == 0:
        raise ValueError(f"Its Tucker core {list(core)} must be [r, r, k, k] over [r, d_out] and [r, d_in].")
    return a[1], a[0], b[1] * math.prod(core[2:])


def unfolded_entries(shapes: Shapes, i: int) -> int:
    """Entries of core i times its factor; 0 where there is none."""
    core = shapes.get(f"t{i}")
    return 0 if core is None else core[0] * shapes[f"w{i}_b"][1] * math.prod(core[2:])


def unfold(
    parts: "Mapping[str, Tensor]", i: int
) -> "tuple[Float32[Tensor, 'rows r'], Float32[Tensor, 'r cols'], tuple[int, ...]]":
    """Both matrices of pair i, and the window of its core: W[p, q, k] = Σ_ij a[i, p] t[i, j, k] b[j, q]."""
    import torch

    a, b, core = parts[f"w{i}_a"], parts[f"w{i}_b"], parts.get(f"t{i}")
    if core is None:
        return a.flatten(1), b.flatten(1), ()
    return a.T.contiguous(), torch.einsum("ijk,jq->iqk", core.flatten(2), b).flatten(1), tuple(core.shape[2:])
