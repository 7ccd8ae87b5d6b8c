"""LoHa, LoKr and AdaLoRA as factors of an ordinary LoRA: ΔW = scale · up @ down, exactly."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorabench.adapters.pairing import Factors, finite, pair
from lorabench.errors import LorabenchError

__all__ = ["factors_of"]

MOST_ENTRIES = 2**28
"""Numbers that the factors of one module may have; small LoHa and LoKr can claim to unfold to any size."""

_Matrix = Float32[Tensor, "rows cols"]


def factors_of(
    where: Path, module: str, form: str, scheme: str, keys: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> Factors:
    """The two matrices of a module of any form.

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
        form: "lora", "adalora", "loha" or "lokr".
        scheme: naming scheme.
        keys: part -> key in the file.
        tensors: the file's tensors.

    Raises:
        LorabenchError: a part is missing, values are not finite, the shapes do not fit, or they unfold to over
            `MOST_ENTRIES` numbers.
    """
    if form == "lora":
        return pair(where, module, scheme, keys, tensors)
    beside = ("alpha", "dora_scale", "lora_magnitude_vector")
    parts = {part: finite(where, key, tensors[key]) for part, key in keys.items() if part not in beside}
    try:
        if form == "adalora":
            factors = _adalora(pair(where, module, scheme, keys, tensors), parts)
        else:
            factors = _loha(parts) if form == "loha" else _lokr(parts)
    except OverflowError as error:
        raise LorabenchError(
            f"{where}: module {module} ({form}) unfolds to {error} numbers, {MOST_ENTRIES} are the most. "
            "Check where the file is from."
        ) from error
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{key} {list(tensors[key].shape)}" for part, key in keys.items() if part in parts)
        raise LorabenchError(
            f"{where}: the shapes of module {module} ({form}) do not fit together: {shapes}. Export the adapter again."
        ) from error
    for matrix in (factors.down, factors.up):  # products of finite numbers may be infinite
        finite(where, f"the ΔW of {module} ({form})", matrix)
    return factors


def _adalora(factors: Factors, parts: Mapping[str, Tensor]) -> Factors:
    values = parts["lora_E"].reshape(factors.down.shape[0], 1)
    note = "AdaLoRA: diag(E) is in down"
    return Factors((factors.down * values).contiguous(), factors.up, factors.rank, (*factors.notes, note))


def _loha(parts: Mapping[str, Tensor]) -> Factors:
    cores = [parts.get(name) for name in ("t1", "t2")]
    tucker = any(core is not None for core in cores)
    ups, downs = [], []
    kernel: tuple[int, ...] = ()
    for i, core in enumerate(cores):
        a, b = parts[f"w{i + 1}_a"], parts[f"w{i + 1}_b"]
        if tucker:
            if core is None:
                raise ValueError("one Tucker core of two")
            kernel = tuple(core.shape[2:])
            # LyCORIS: W[p, q, k] = Σ_ij a[i, p] t[i, j, k] b[j, q]
            ups.append(_transposed(a))
            downs.append(_unfold(core, b))
        else:
            ups.append(a.flatten(1))
            downs.append(b.flatten(1))
    rank = ups[0].shape[1]
    if any(up.shape[1] != down.shape[0] for up, down in zip(ups, downs, strict=True)):
        raise ValueError("inner dimensions differ")
    if ups[0].shape[0] != ups[1].shape[0] or downs[0].shape[1] != downs[1].shape[1]:
        raise ValueError("outer dimensions differ")
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
            a, b = _transposed(a).contiguous(), _unfold(core, b)
        a, b = a.flatten(1), b.flatten(1)
        if a.shape[1] != b.shape[0]:
            raise ValueError("inner dimensions differ")
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


def _transposed(a: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    if a.ndim != 2:
        raise ValueError("a factor beside a Tucker core is no matrix")
    return a.T


def _unfold(core: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> Float[Tensor, "r qk"]:
    """A Tucker core [r, r, k, k] times b [r, q], as a matrix [r, q·k·k]."""
    core = core.flatten(2)
    if b.ndim != 2:
        raise ValueError("a factor beside a Tucker core is no matrix")
    if core.shape[0] * b.shape[1] * core.shape[2] > MOST_ENTRIES:
        raise OverflowError(core.shape[0] * b.shape[1] * core.shape[2])
    return torch.einsum("ijk,jq->iqk", core, b).flatten(1)


def _is_full(out: int, into: int, rank: int) -> bool:
    """Whether ΔW [out, into] of this rank is smaller than its factors."""
    if min(out, into, rank) == 0:
        raise ValueError("a side of 0")
    full = rank > min(out, into)
    entries = out * into if full else rank * (out + into)
    if entries > MOST_ENTRIES:
        raise OverflowError(entries)
    return full


def _halves(whole: Float[Tensor, "rows cols"]) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "k cols"]]:
    """A matrix as a product of itself and the identity of its short side."""
    rows, cols = whole.shape
    return (torch.eye(rows), whole) if rows <= cols else (whole, torch.eye(cols))


def _dense(delta: Float[Tensor, "d_out d_in"], rank: int, name: str, kernel: tuple[int, ...]) -> Factors:
    up, down = _halves(delta)
    note = f"{name}: ΔW may have full rank, and is given by itself and the identity"
    return Factors(down.contiguous(), up.contiguous(), rank, (note,), kernel)
