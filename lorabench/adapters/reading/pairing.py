"""From the tensors of one module to its down and up matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorabench.adapters.reading.shapes import Fit
from lorabench.errors import LorabenchError

__all__ = ["Factors", "finite", "pair"]


@dataclass(frozen=True)
class Factors:
    """down [r, d_in] and up [d_out, r] in float32, the rank that scales are divided by, notes, a convolution's size."""

    down: Float32[Tensor, "r d_in"]
    up: Float32[Tensor, "d_out r"]
    rank: int
    notes: tuple[str, ...] = ()
    kernel: tuple[int, ...] = ()


def pair(
    where: Path,
    scheme: str,
    keys: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    found: Fit,
    parts: Sequence[bool] = (),
) -> Factors:
    """The two matrices of a module whose shapes fit; convolutions are flattened, a Tucker core is folded into down.

    A convolution's ΔW [d_out, in·k·k] is up [d_out, r] @ down [r, in·k·k]. With a Tucker core mid [r, r, k,
    k] (LyCORIS) down becomes Σ_b mid[a, b] down[b]. loralib's merged projections (up [d_out', r, 1] over down
    [g·r, d_in], Hu et al. 2021) become one block-diagonal up, with zero rows for the parts that are off.

    Args:
        where: the file, for messages.
        scheme: naming scheme; "mlx" stores both factors transposed.
        keys: part -> key in the file.
        tensors: the file's tensors.
        found: what their shapes say (`shapes.fit`).
        parts: of a merged projection: which parts of the layer are on (`switching.switches`).

    Raises:
        LorabenchError: values are not finite, or quantised.
    """
    down, up = (finite(where, keys[part], tensors[keys[part]]) for part in ("down", "up"))
    kernel = tuple(down.shape[2:])
    if "mid" in keys:
        mid = finite(where, keys["mid"], tensors[keys["mid"]])
        folded = torch.einsum("abk,bi->aik", mid.flatten(2), down.flatten(1))
        down, kernel = finite(where, keys["mid"], folded), tuple(mid.shape[2:])
    if scheme == "mlx":
        down, up = down.mT, up.mT
    elif found.groups:
        up = _block_diagonal(up.flatten(1), found.groups, parts)
    return Factors(down.flatten(1).contiguous(), up.flatten(1).contiguous(), found.rank, kernel=kernel)


def _block_diagonal(up: Float[Tensor, "d_out r"], groups: int, parts: Sequence[bool]) -> Float[Tensor, "rows gr"]:
    height, rank = up.shape[0] // groups, up.shape[1]
    whole = torch.zeros(height * len(parts), rank * groups)
    for i, at in enumerate(at for at, on in enumerate(parts) if on):
        whole[at * height : (at + 1) * height, i * rank : (i + 1) * rank] = up[i * height : (i + 1) * height]
    return whole


def finite(where: Path, key: str, tensor: Tensor) -> Float32[Tensor, "..."]:
    """A stored tensor in float32.

    Raises:
        LorabenchError: it is quantised, or holds NaN or infinity.
    """
    if not tensor.is_floating_point() or tensor.dtype == torch.float4_e2m1fn_x2:  # two of 4 bits a byte
        raise LorabenchError(
            f"{where}: {key} is stored as {tensor.dtype}; quantised factors cannot be read. "
            "Export the adapter in float16, bfloat16 or float32."
        )
    values = tensor.to(torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise LorabenchError(
            f"{where}: NaN or infinite values in {key} (a diverged training run leaves such files). "
            "Train again or take an earlier checkpoint."
        )
    return values
