"""LoHa, LoKr and AdaLoRA as factors of an ordinary LoRA: ΔW = scale · up @ down, exactly."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorabench.adapters.reading.pairing import Factors, finite, pair
from lorabench.adapters.reading.shapes import MOST_ENTRIES, Fit
from lorabench.adapters.reading.sorting import BESIDE, ModuleKeys

__all__ = ["MOST_ENTRIES", "factors_of"]

_Matrix = Float32[Tensor, "rows cols"]


def factors_of(
    where: Path, module: str, one: ModuleKeys, tensors: Mapping[str, Tensor], found: Fit, parts: Sequence[bool] = ()
) -> Factors:
    """The two matrices of a module of any form whose shapes fit.

    - LoRA: `pair`.
    - AdaLoRA (Zhang et al. 2023): ΔW = B·diag(E)·A, so E goes into down.
    - LoHa (Hyeon-Woo et al. 2022, FedPara): ΔW = (W1a·W1b) ∘ (W2a·W2b), whose rank is at most r²: a row of up is the
      Kronecker product of the rows of W1a and W2a, a column of down that of the columns of W1b and W2b.
    - LoKr (Yeh et al. 2024, LyCORIS): ΔW = W1 ⊗ W2, so up and down are the Kronecker products of those of W1 and W2.

    Where the rank so found is over the short side of ΔW, the long side's matrix is ΔW itself and the other one the
    identity.

    Args:
        where: the file, for messages.
        module: canonical module name, for messages.
        one: its keys, form and scheme.
        tensors: the file's tensors.
        found: what their shapes say (`shapes.fit`).
        parts: of a merged projection: which parts of the layer are on.

    Raises:
        LorabenchError: values are not finite, or quantised.
    """
    if one.form == "lora":
        return pair(where, one.scheme, one.parts, tensors, found, parts)
    values = {part: finite(where, key, tensors[key]) for part, key in one.parts.items() if part not in BESIDE}
    if one.form == "adalora":
        factors = _adalora(pair(where, one.scheme, one.parts, tensors, found, parts), values)
    else:
        factors = _loha(values) if one.form == "loha" else _lokr(values)
    for matrix in (factors.down, factors.up):  # products of finite numbers may be infinite
        finite(where, f"the ΔW of {module} ({one.form})", matrix)
    return factors


def _adalora(factors: Factors, parts: Mapping[str, Tensor]) -> Factors:
    values = parts["lora_E"].reshape(factors.down.shape[0], 1)
    note = "AdaLoRA: diag(E) is in down"
    return Factors((factors.down * values).contiguous(), factors.up, factors.rank, (*factors.notes, note))


def _loha(parts: Mapping[str, Tensor]) -> Factors:
    cores = [parts.get(name) for name in ("t1", "t2")]
    ups, downs = [], []
    kernel: tuple[int, ...] = ()
    for i, core in enumerate(cores):
        a, b = parts[f"w{i + 1}_a"], parts[f"w{i + 1}_b"]
        if core is not None:
            kernel = tuple(core.shape[2:])
            # LyCORIS: W[p, q, k] = Σ_ij a[i, p] t[i, j, k] b[j, q]
            ups.append(a.T)
            downs.append(_unfold(core, b))
        else:
            ups.append(a.flatten(1))
            downs.append(b.flatten(1))
    rank = ups[0].shape[1]
    if _is_full(ups[0].shape[0], downs[0].shape[1], ups[0].shape[1] * ups[1].shape[1]):
        return _dense((ups[0] @ downs[0]) * (ups[1] @ downs[1]), rank, "LoHa", kernel)
    up = (ups[0][:, :, None] * ups[1][:, None, :]).flatten(1)
    down = (downs[0][:, None, :] * downs[1][None, :, :]).flatten(0, 1)
    note = f"LoHa of rank {rank}: ΔW has rank {up.shape[1]} at most, and is given by factors of that rank"
    return Factors(down.contiguous(), up.contiguous(), rank, (note,), kernel)


def _lokr(parts: Mapping[str, Tensor]) -> Factors:
    kernel: tuple[int, ...] = ()
    pairs, ranks = [], []
    for i in (1, 2):
        if f"w{i}" in parts:
            whole = parts[f"w{i}"]
            kernel = tuple(whole.shape[2:]) or kernel
            pairs.append(_halves(whole.flatten(1)))
            continue
        a, b = parts[f"w{i}_a"], parts[f"w{i}_b"]
        core = parts.get(f"t{i}")
        if core is not None:
            kernel = tuple(core.shape[2:])
            a, b = a.T.contiguous(), _unfold(core, b)
        a, b = a.flatten(1), b.flatten(1)
        ranks.append(b.shape[0])
        pairs.append((a, b))
    # Two whole matrices have no rank to divide by; LyCORIS then takes α = r.
    rank = ranks[-1] if ranks else 0
    (up1, down1), (up2, down2) = pairs
    out, into = up1.shape[0] * up2.shape[0], down1.shape[1] * down2.shape[1]
    if _is_full(out, into, up1.shape[1] * up2.shape[1]):
        return _dense(torch.kron(up1 @ down1, up2 @ down2), rank, "LoKr", kernel)
    up, down = torch.kron(up1, up2), torch.kron(down1, down2)
    note = f"LoKr: a Kronecker product, given by factors of rank {up.shape[1]}"
    return Factors(down.contiguous(), up.contiguous(), rank, (note,), kernel)


def _unfold(core: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> Float[Tensor, "r qk"]:
    """A Tucker core [r, r, k, k] times b [r, q], as a matrix [r, q·k·k]."""
    return torch.einsum("ijk,jq->iqk", core.flatten(2), b).flatten(1)


def _is_full(out: int, into: int, rank: int) -> bool:
    """Whether ΔW [out, into] of this rank is smaller than its factors."""
    return rank > min(out, into)


def _halves(whole: Float[Tensor, "rows cols"]) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "k cols"]]:
    """A matrix as a product of itself and the identity of its short side."""
    rows, cols = whole.shape
    return (torch.eye(rows), whole) if rows <= cols else (whole, torch.eye(cols))


def _dense(delta: Float[Tensor, "d_out d_in"], rank: int, name: str, kernel: tuple[int, ...]) -> Factors:
    up, down = _halves(delta)
    note = f"{name}: ΔW may have full rank, and is given by itself and the identity"
    return Factors(down.contiguous(), up.contiguous(), rank, (note,), kernel)
