"""How far one ΔW is from another, or from a sum of several, without a dense ΔW: the one place that measures it."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from lorabench.adapters.adapter import LoraModule, alike
from lorabench.errors import LorabenchError
from lorabench.progress import bar

__all__ = ["Deviation", "Term", "batches", "chunks", "deviations", "distance", "distances", "ratio", "stacked", "total"]

Term = tuple[Float[Tensor, "*batch _ d_in"], Float[Tensor, "*batch d_out _"], float | int | Float64[Tensor, "*batch"]]
"""(down [*batch, r, d_in], up [*batch, d_out, r], factor) of factor · up @ down."""

Item = TypeVar("Item")

_CHUNK = 2**24
_CANCELLED = 1e-10
_ROUNDING = 1e-14
_Factors = tuple[Float64[Tensor, "n r d_in"], Float64[Tensor, "n d_out r"]]


@dataclass(frozen=True)
class Deviation:
    """Of one module: ‖ΔW‖_F before, and ‖ΔW − ΔW'‖_F."""

    norm: float
    difference: float

    @property
    def relative(self) -> float | None:
        """‖ΔW − ΔW'‖_F / ‖ΔW‖_F; None where ΔW is zero."""
        return self.difference / self.norm if self.norm > 0 else None

    @property
    def error(self) -> float:
        """The same as a number: 0 where a ΔW of zero stayed zero, infinite where it did not."""
        return ratio(self.difference, self.norm)


def deviations(before: Mapping[str, LoraModule], after: Mapping[str, LoraModule]) -> dict[str, Deviation]:
    """‖ΔW‖_F and ‖ΔW − ΔW'‖_F of every module, from the factors as they are.

    See `distance` for how. Factors that are the same to the bit, or but for zeros that were added, differ by 0.

    Args:
        before: module -> ΔW.
        after: module -> ΔW', of any rank.

    Raises:
        LorabenchError: the two do not have the same modules of the same shapes.
    """
    _check_same(before, after)
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, module in before.items():
        groups[(*module.shape, module.rank)].append(name)
    found = {}
    with bar("Measuring ΔW", len(before)) as shown:
        for (d_out, d_in, rank), names in groups.items():
            widest = rank + max(after[name].rank for name in names)
            for chunk in chunks(names, (d_out + d_in) * widest):
                found.update(_chunk([before[name] for name in chunk], [after[name] for name in chunk], chunk))
                shown.advance(len(chunk))
    return {name: found[name] for name in before}


def distance(found: Term, terms: Sequence[Term]) -> tuple[float, float]:
    """‖found − Σ terms‖_F and ‖Σ terms‖_F of one module; see `distances`."""
    apart, norm = distances(found, terms)
    return float(apart), float(norm)


def distances(found: Term, terms: Sequence[Term]) -> tuple[Float64[Tensor, "*batch"], Float64[Tensor, "*batch"]]:
    """‖found − Σ terms‖_F and ‖Σ terms‖_F; what cannot be told from float64's rounding of the parts is 0.

    The difference is a low-rank pair itself, E = [Σ's up, −up'] @ [Σ's down; down'], and ‖E‖² the sum over
    (Gram of up) ∘ (Gram of down). Where that sum cancels to less than 1e-10 of its terms (a relative difference of
    1e-5 or so), ‖R_up·R_downᵀ‖ of Householder QR takes its place, right to 1e-14 of Σ_j ‖up_j‖·‖down_j‖. Where both
    have one down matrix, as in a concatenation, the difference of the up matrices says it all.
    """
    down, up = stacked(terms)
    own_down, own_up = stacked([found])
    if down.dim() > 2:
        return _apart((down, up), (own_down, own_up))
    differences, norms = _apart((down[None], up[None]), (own_down[None], own_up[None]))
    return differences[0], norms[0]


def stacked(
    terms: Sequence[Term],
) -> tuple[Float64[Tensor, "*batch sum_r d_in"], Float64[Tensor, "*batch d_out sum_r"]]:
    """One pair of the sum of all terms: rows of down stacked, columns of factor · up stacked; ranks add."""
    down = torch.cat([down.double() for down, _, _ in terms], dim=-2)
    up = torch.cat([_times(factor, up.double()) for _, up, factor in terms], dim=-1)
    return down, up


def _times(
    factor: float | int | Float64[Tensor, "*batch"], up: Float64[Tensor, "*batch d_out r"]
) -> Float64[Tensor, "*batch d_out r"]:
    return up * (factor[..., None, None] if isinstance(factor, Tensor) else factor)


def ratio(part: float, whole: float) -> float:
    """An error relative to what it is an error of: 0 where there is none, infinite where only the whole is 0."""
    if part == 0:
        return 0.0
    return part / whole if whole > 0 else math.inf


def total(found: Mapping[str, Deviation]) -> Deviation:
    """Of all modules together, as if every ΔW were a block of one matrix."""
    return Deviation(
        norm=math.hypot(*(one.norm for one in found.values())),
        difference=math.hypot(*(one.difference for one in found.values())),
    )


def chunks(modules: Sequence[Item], entries: int) -> Iterator[Sequence[Item]]:
    """Modules in batches whose float64 factors take 16 MiB or so: memory is bounded, and caches hold a batch.

    Args:
        modules: of one shape, or what stands for them.
        entries: numbers in the factors of one of them.
    """
    size = max(1, _CHUNK // (8 * entries))
    for start in range(0, len(modules), size):
        yield modules[start : start + size]


def batches(modules: Mapping[str, LoraModule]) -> Iterator[Sequence[str]]:
    """Names of modules of one shape and rank, which can be computed together, in batches of bounded memory."""
    for names in alike(modules):
        first = modules[names[0]]
        yield from chunks(names, first.down.numel() + first.up.numel())


def _chunk(before: Sequence[LoraModule], after: Sequence[LoraModule], names: Sequence[str]) -> dict[str, Deviation]:
    first = _factors(before)
    changed = torch.tensor([not _padded(one, two) for one, two in zip(before, after, strict=True)])
    differences, norms = torch.zeros(len(names), dtype=torch.float64), torch.zeros(len(names), dtype=torch.float64)
    if not bool(changed.all()):
        norms[~changed] = _norms(first[0][~changed], first[1][~changed])
    if bool(changed.any()):
        second = _factors([module for module, other in zip(after, changed.tolist(), strict=True) if other])
        differences[changed], norms[changed] = _apart((first[0][changed], first[1][changed]), second)
    found = zip(names, norms.tolist(), differences.tolist(), strict=True)
    return {name: Deviation(norm, difference) for name, norm, difference in found}


def _factors(modules: Sequence[LoraModule]) -> _Factors:
    """Down and scale · up of modules of one shape, with zeros up to the largest rank."""
    rank = max(module.rank for module in modules)
    scales = torch.tensor([module.scale for module in modules], dtype=torch.float64)
    down = torch.stack([functional.pad(module.down, (0, 0, 0, rank - module.rank)) for module in modules])
    up = torch.stack([functional.pad(module.up, (0, rank - module.rank)) for module in modules])
    return down.double(), up * scales[:, None, None]


def _padded(before: LoraModule, after: LoraModule) -> bool:
    """Whether down and scale · up are the same to the bit, but for rows and columns of zeros that were added."""
    rank = before.rank
    return (
        torch.equal(before.down, after.down[:rank])
        and torch.equal(before.up.double() * before.scale, after.up[:, :rank].double() * after.scale)
        and not bool(after.down[rank:].any() and after.up[:, rank:].any())
    )


def _apart(
    before: _Factors, after: tuple[Float64[Tensor, "n q d_in"], Float64[Tensor, "n d_out q"]]
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """‖before − after‖_F and ‖before‖_F of each pair."""
    down, up = before
    if torch.equal(after[0], down):
        return _norms(down, up - after[1]), _norms(down, up)
    rank = down.shape[-2]
    down, up = torch.cat([down, after[0]], dim=-2), torch.cat([up, -after[1]], dim=-1)
    products = (up.mT @ up) * (down @ down.mT)
    norms = _norms(down[:, :rank], up[:, :, :rank], products[:, :rank, :rank])
    return _norms(down, up, products), norms


def _norms(
    down: Float64[Tensor, "n r d_in"],
    up: Float64[Tensor, "n d_out r"],
    products: Float64[Tensor, "n r r"] | None = None,
) -> Float64[Tensor, " n"]:
    """‖up @ down‖_F; `products` are the inner products of the rank-one parts, where they are known."""
    products = (up.mT @ up) * (down @ down.mT) if products is None else products
    squares = products.sum((-2, -1))
    terms = products.abs().sum((-2, -1))
    cancelled = (squares <= _CANCELLED * terms) & (terms > 0)
    norms = squares.clamp_min(0).sqrt()
    if bool(cancelled.any()):
        root_up, root_down = (torch.linalg.qr(part, mode="r").R for part in (up[cancelled], down[cancelled].mT))
        sizes = products[cancelled].diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt().sum(-1)
        values = (root_up @ root_down.mT).norm(dim=(-2, -1))
        norms[cancelled] = torch.where(values > _ROUNDING * sizes, values, 0.0)
    return norms


def _check_same(before: Mapping[str, LoraModule], after: Mapping[str, LoraModule]) -> None:
    for name in before.keys() | after.keys():
        if name not in before or name not in after:
            raise LorabenchError(f"module {name} is in one of the two adapters only. Give the same modules in both.")
        if before[name].shape != after[name].shape:
            raise LorabenchError(
                f"module {name}: ΔW is {list(before[name].shape)} in one adapter and {list(after[name].shape)} in "
                "the other. Give two adapters of one base model."
            )
