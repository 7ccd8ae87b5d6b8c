"""From the tensors of one module to its down and up matrix."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from lorabench.errors import LorabenchError

__all__ = ["Factors", "finite", "pair"]

# More than any adapter has; they bound what a small file can unfold to.
_MAX_GROUPS = 16
_MAX_KERNEL = 1024


@dataclass(frozen=True)
class Factors:
    """down [r, d_in] and up [d_out, r] in float32, the rank that scales are divided by, notes, a convolution's size."""

    down: Float32[Tensor, "r d_in"]
    up: Float32[Tensor, "d_out r"]
    rank: int
    notes: tuple[str, ...] = ()
    kernel: tuple[int, ...] = ()


def pair(where: Path, module: str, scheme: str, keys: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Factors:
    """The two matrices of a module; convolutions are flattened, and a Tucker core is folded into down.

    A convolution's ΔW [d_out, in·k·k] is up [d_out, r] @ down [r, in·k·k]. With a Tucker core mid [r, r, k,
    k] (LyCORIS) down becomes Σ_b mid[a, b] down[b]. loralib's merged projections (up [d_out, r, 1] over down
    [g·r, d_in], Hu et al. 2021) become one block-diagonal up.

    Args:
        where: the file, for messages.
        module: canonical module name, for messages.
        scheme: naming scheme; "mlx" stores both factors transposed.
        keys: part -> key in the file.
        tensors: the file's tensors.

    Raises:
        LorabenchError: half of the pair is missing, values are not finite, or the shapes do not fit.
    """
    for part, other in (("down", "up"), ("up", "down")):
        if part not in keys:
            have = keys.get(other) or next(iter(keys.values()))
            raise LorabenchError(
                f"{where}: module {module} has {have} but no {part} matrix; half of the pair is missing. "
                "Export the adapter again, or remove these keys."
            )
    down, up = (finite(where, keys[part], tensors[keys[part]]) for part in ("down", "up"))
    kernel, groups = tuple(down.shape[2:]), 1
    if "mid" in keys:
        mid = finite(where, keys["mid"], tensors[keys["mid"]])
        down, kernel = finite(where, keys["mid"], _fold(where, module, down, mid)), tuple(mid.shape[2:])
    if scheme == "mlx" and down.ndim == up.ndim == 2:
        down, up = down.mT, up.mT
    elif down.ndim == 2 and up.ndim == 3 and up.shape[1] and up.shape[2] == 1:
        groups = min(max(down.shape[0] // up.shape[1], 1), _MAX_GROUPS)
        up = _block_diagonal(up[:, :, 0], groups)
    if not _fit(scheme, down, up) or up.shape[0] % groups:
        _refuse_shapes(where, module, keys, tensors)
    notes = (f"merged projection of {groups} parts: rows of parts that are switched off are left out",)
    return Factors(
        down.flatten(1).contiguous(),
        up.flatten(1).contiguous(),
        down.shape[0] // groups,
        notes if groups > 1 else (),
        kernel,
    )


def _block_diagonal(up: Float[Tensor, "d_out r"], groups: int) -> Float[Tensor, "d_out gr"]:
    blocks = up.chunk(groups)
    return torch.cat(
        [
            functional.pad(block, (i * up.shape[1], (len(blocks) - 1 - i) * up.shape[1]))
            for i, block in enumerate(blocks)
        ]
    )


def _fit(scheme: str, down: Float[Tensor, "..."], up: Float[Tensor, "..."]) -> bool:
    """Whether up [d_out, r, 1…] takes what down [r, d_in, k…] gives."""
    if min(down.ndim, up.ndim) < 2 or min(down.shape + up.shape) == 0:
        return False
    if scheme == "mlx" and max(down.ndim, up.ndim) > 2:
        return False
    return up.shape[1] == down.shape[0] and up[0, 0].numel() == 1


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


def _fold(where: Path, module: str, down: Float[Tensor, "..."], mid: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    square = mid.ndim > 2 and mid.shape[0] == mid.shape[1]
    if not square or down.ndim < 2 or mid.shape[1] != down.shape[0] or mid.shape[2:].numel() > _MAX_KERNEL:
        raise LorabenchError(
            f"{where}: the Tucker core of {module} has shape {list(mid.shape)}, which does not fit its down "
            f"matrix {list(down.shape)}; [r, r, k, k] is needed. Export the adapter again."
        )
    return torch.einsum("abk,bi->aik", mid.flatten(2), down.flatten(1))


def _refuse_shapes(where: Path, module: str, keys: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    shapes = ", ".join(f"{key} {list(tensors[key].shape)}" for part, key in keys.items() if part != "alpha")
    raise LorabenchError(
        f"{where}: the shapes of module {module} do not fit together: {shapes}. down must be [r, d_in] "
        "and up [d_out, r] with one r > 0 for both. Export the adapter again."
    )
