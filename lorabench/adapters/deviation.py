"""How far one adapter's ΔW is from another's, module by module, without a dense ΔW."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from lorabench.adapters.adapter import LoraModule
from lorabench.errors import LorabenchError

__all__ = ["Deviation", "chunks", "deviations", "total"]

_CHUNK = 2**24
_CANCELLED = 1e-12


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
        if self.norm > 0:
            return self.difference / self.norm
        return math.inf if self.difference else 0.0


def deviations(before: Mapping[str, LoraModule], after: Mapping[str, LoraModule]) -> dict[str, Deviation]:
    """‖ΔW‖_F and ‖ΔW − ΔW'‖_F of every module, from the factors as they are.

    The difference is a low-rank pair itself, E = [scale·up, −scale'·up'] @ [down; down'], and ‖E‖² the sum over
    (Gram of up) ∘ (Gram of down). Where that sum cancels to less than 1e-12 of its terms (a relative difference
    of 1e-6 or so), ‖R_up·R_downᵀ‖ of Householder QR takes its place, right to 1e-14 of the factors' norms. Factors
    that are the same to the bit differ by 0.

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
    for (d_out, d_in, rank), names in groups.items():
        widest = rank + max(after[name].rank for name in names)
        for chunk in chunks(names, (d_out + d_in) * widest):
            found.update(_chunk([before[name] for name in chunk], [after[name] for name in chunk], chunk))
    return {name: found[name] for name in before}


def total(found: Mapping[str, Deviation]) -> Deviation:
    """Of all modules together, as if every ΔW were a block of one matrix."""
    return Deviation(
        norm=math.hypot(*(one.norm for one in found.values())),
        difference=math.hypot(*(one.difference for one in found.values())),
    )


def chunks(names: Sequence[str], entries: int) -> Iterator[Sequence[str]]:
    """The names in batches whose float64 factors take 16 MiB or so: memory is bounded, and caches hold a batch.

    Args:
        names: of modules of one shape.
        entries: numbers in the factors of one of them.
    """
    size = max(1, _CHUNK // (8 * entries))
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _chunk(before: Sequence[LoraModule], after: Sequence[LoraModule], names: Sequence[str]) -> dict[str, Deviation]:
    rank, new = before[0].rank, max(module.rank for module in after)
    pairs = zip(before, after, strict=True)
    scales = torch.tensor([[one.scale, -two.scale] for one, two in pairs], dtype=torch.float64)
    down = torch.cat(
        [
            torch.stack([module.down for module in before]),
            torch.stack([functional.pad(module.down, (0, 0, 0, new - module.rank)) for module in after]),
        ],
        dim=1,
    ).double()
    up = torch.cat(
        [
            torch.stack([module.up for module in before]) * scales[:, :1, None],
            torch.stack([functional.pad(module.up, (0, new - module.rank)) for module in after]) * scales[:, 1:, None],
        ],
        dim=2,
    )
    products = (up.mT @ up) * (down @ down.mT)
    differences = torch.zeros(len(names), dtype=torch.float64)
    changed = torch.tensor([not _padded(one, two) for one, two in zip(before, after, strict=True)])
    differences[changed] = _norms(products[changed], down[changed], up[changed])
    norms = _norms(products[:, :rank, :rank], down[:, :rank], up[:, :, :rank])
    found = zip(names, norms.tolist(), differences.tolist(), strict=True)
    return {name: Deviation(norm, difference) for name, norm, difference in found}


def _padded(before: LoraModule, after: LoraModule) -> bool:
    """Whether down and scale · up are the same to the bit, but for rows and columns of zeros that were added."""
    rank = before.rank
    return (
        torch.equal(before.down, after.down[:rank])
        and torch.equal(before.up.double() * before.scale, after.up[:, :rank].double() * after.scale)
        and not bool(after.down[rank:].any() and after.up[:, rank:].any())
    )


def _norms(
    products: Float64[Tensor, "n r r"], down: Float[Tensor, "n r d_in"], up: Float[Tensor, "n d_out r"]
) -> Float64[Tensor, " n"]:
    squares = products.sum((-2, -1))
    terms = products.abs().sum((-2, -1))
    cancelled = (squares <= _CANCELLED * terms) & (terms > 0)
    norms = squares.clamp_min(0).sqrt()
    if bool(cancelled.any()):
        roots = (torch.linalg.qr(part, mode="r").R for part in (up[cancelled], down[cancelled].mT))
        root_up, root_down = roots
        norms[cancelled] = (root_up @ root_down.mT).norm(dim=(-2, -1))
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
