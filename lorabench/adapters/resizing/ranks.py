"""Which rank each module gets: by a number, by its spectrum, or by a budget of bytes over all modules."""

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from lorabench.adapters.reading.naming import component
from lorabench.adapters.resizing.modes import MODES, spelled
from lorabench.errors import LorabenchError
from lorabench.lowrank import energy_rank

__all__ = ["RankRule", "budget_ranks", "limits_by_module", "spectral_rank"]

_COUNTED = ("rank", "pad", "truncate")
_KOHYA = ("sv_ratio", "sv_cumulative", "sv_fro")
_SLACK = 1 - 1e-12


@dataclass(frozen=True)
class RankRule:
    """How ranks are chosen, checked.

    Attributes:
        mode: one of `resize_modes.MODES`.
        value: a rank ("rank", "pad", "truncate"), a share in (0, 1] ("sv_cumulative", "sv_fro", "energy"), a ratio
            from 1 on ("sv_ratio"), or MiB above 0 ("size_mib").
        limits: part of the model, module, or pattern with `*`, `?` and `[…]` -> largest rank there.
        min_rank: least rank, where the spectrum or the budget decides.
        max_rank: largest rank, where the spectrum or the budget decides.
        kohya_counts: count as kohya's older tools do, one value more ("sv_ratio", "sv_cumulative", "sv_fro").

    Raises:
        LorabenchError: a value is out of its range, or does not go with the mode.
    """

    mode: str
    value: float | int
    limits: Mapping[str, int] = field(default_factory=dict)
    min_rank: int = 1
    max_rank: int | None = None
    kohya_counts: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise LorabenchError(f"mode={self.mode!r}: allowed are {', '.join(MODES)}.")
        _check_value(self.mode, self.value)
        for what, number in (("min_rank", self.min_rank), ("max_rank", self.max_rank)):
            if number is not None:
                _check_rank(spelled(what, number), number)
        for name, number in self.limits.items():
            _check_rank(f"limits[{name!r}]={number!r} (--limit {name}={number})", number)
        if not self.by_spectrum and (self.min_rank != 1 or self.max_rank is not None):
            raise LorabenchError(
                f"min_rank and max_rank (--min-rank, --max-rank) do not go with {spelled(self.mode, self.value)}, "
                "which says the rank itself. Leave them away, or use limits (--limit) for single modules."
            )
        highest = [number for number in (self.max_rank, *self.limits.values()) if number is not None]
        if highest and min(highest) < self.min_rank:
            raise LorabenchError(
                f"{spelled('min_rank', self.min_rank)} is above a limit of {min(highest)}. Lower the one or raise the "
                "other."
            )
        if self.mode == "pad" and self.limits:
            raise LorabenchError("limits (--limit) do not go with pad, which takes nothing away. Use rank or truncate.")
        if self.kohya_counts and self.mode not in _KOHYA:
            raise LorabenchError(
                f"kohya_counts (--kohya-counts) goes with {', '.join(_KOHYA)}, not with {self.mode}. Leave it away."
            )

    @classmethod
    def of(cls, modes: Mapping[str, float | int | None], **others: Any) -> "RankRule":
        """The rule of the one mode that has a value.

        Args:
            modes: mode -> value, or None where it was not given.
            others: the other attributes.

        Raises:
            LorabenchError: none or several were given.
        """
        given = {mode: value for mode, value in modes.items() if value is not None}
        if len(given) != 1:
            came = ", ".join(spelled(mode, value) for mode, value in given.items()) or "none"
            raise LorabenchError(f"resize needs exactly one of {', '.join(modes)}; {came} came.")
        ((mode, value),) = given.items()
        return cls(mode, value, **others)

    @property
    def by_spectrum(self) -> bool:
        """Whether singular values decide, so that modules differ."""
        return self.mode not in _COUNTED


def spectral_rank(
    mode: str, value: float | int, sigma: Float[Tensor, "*batch k"], kohya_counts: bool = False
) -> Int64[Tensor, "*batch"]:
    """How many singular values a mode keeps, at least 1 and at most k.

    - "sv_ratio" t: count(σ > σ₁/t).
    - "sv_cumulative" t: the smallest k with Σ_{i≤k} σ ≥ t·Σσ.
    - "sv_fro" t: the smallest k with Σ_{i≤k} σ² ≥ t²·Σσ².
    - "energy" t: the smallest k with Σ_{i≤k} σ² ≥ t·Σσ².

    A share is met when it is to 1e-12, so that rounding asks for no value more.

    Args:
        mode: one of these four.
        value: t.
        sigma: spectrum [*batch, k], descending.
        kohya_counts: one value more, as kohya's `resize_lora.py` counted.

    Example:
        >>> import torch
        >>> sigma = torch.tensor([4.0, 2.0, 1.0, 1.0])
        >>> modes = {"sv_ratio": 3, "sv_cumulative": 0.75, "sv_fro": 0.9}
        >>> [int(spectral_rank(mode, t, sigma)) for mode, t in modes.items()]
        [2, 2, 2]
        >>> int(spectral_rank("sv_ratio", 3, sigma, kohya_counts=True))
        3
    """
    values = sigma.double()
    if mode == "sv_ratio":
        count = (values > values[..., :1] / value).sum(-1)
    elif mode == "sv_cumulative":
        sums = values.cumsum(-1)
        count = (sums < value * sums[..., -1:] * _SLACK).sum(-1) + 1
    else:
        count = energy_rank(values, value**2 if mode == "sv_fro" else value)
    return (count.clamp_min(1) + kohya_counts).clamp_max(values.shape[-1])


def budget_ranks(
    spectra: Mapping[str, Float[Tensor, " k"]],
    cost: Mapping[str, int],
    bounds: Mapping[str, tuple[int, int]],
    budget: int,
) -> dict[str, int]:
    """The ranks with the least total Σ discarded σ² whose bytes stay within a budget.

    The next singular value of a module saves σ² and costs the same bytes as the one before, and σ² falls: gains per
    byte are concave in every module, so taking the largest gain per byte first is optimal at each budget that it
    fills exactly (Fox 1966, marginal allocation). Between those it misses less than one step; what is left over goes
    to smaller steps that still fit.

    Args:
        spectra: module -> σ of ΔW, descending.
        cost: module -> bytes of one rank.
        bounds: module -> least and largest rank.
        budget: bytes of all factors together.

    Raises:
        LorabenchError: the least ranks do not fit.
    """
    ranks = {name: least for name, (least, _) in bounds.items()}
    left = budget - sum(cost[name] * rank for name, rank in ranks.items())
    if left < 0:
        raise LorabenchError(f"the least ranks need {-left} bytes more than there are for weights")
    gains = {name: (sigma.double().square() / cost[name]).tolist() for name, sigma in spectra.items()}
    order = {name: place for place, name in enumerate(gains)}
    heap = [(-gains[name][rank], order[name], name) for name, rank in ranks.items() if rank < bounds[name][1]]
    heapq.heapify(heap)
    while heap:
        gain, _, name = heapq.heappop(heap)
        if cost[name] > left or gain == 0:  # every later step of this module costs as much, and saves less
            continue
        left -= cost[name]
        ranks[name] += 1
        if ranks[name] < bounds[name][1]:
            heapq.heappush(heap, (-gains[name][ranks[name]], order[name], name))
    return ranks


def limits_by_module(names: Iterable[str], limits: Mapping[str, int]) -> dict[str, int]:
    """Module -> its largest rank, for the modules that a limit names; the smallest of several holds.

    Args:
        names: of all modules.
        limits: a part ("text_encoder", see `component`), a module's name, or a pattern for names -> rank.

    Raises:
        LorabenchError: a limit fits no module.
    """
    names = list(names)
    found: dict[str, int] = {}
    for key, limit in limits.items():
        fitting = [name for name in names if key in (name, component(name)) or fnmatchcase(name, key)]
        if not fitting:
            parts = ", ".join(sorted({component(name) for name in names}))
            raise LorabenchError(
                f"limits[{key!r}] fits no module. Give a part ({parts}), a module's name ({names[0]}), or a pattern "
                "like '*.attn2.*'."
            )
        for name in fitting:
            found[name] = min(limit, found.get(name, limit))
    return found


def _check_value(mode: str, value: float | int) -> None:
    if mode in _COUNTED:
        _check_rank(spelled(mode, value), value)
        return
    number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if mode == "sv_ratio":
        fine, allowed = number and value >= 1, "a ratio from 1 on, 2 to 20 say"
    elif mode == "size_mib":
        fine, allowed = number and value > 0, "a size in MiB above 0"
    else:
        fine, allowed = number and 0 < value <= 1, "a share above 0 and up to 1, 0.9 say"
    if not fine:
        raise LorabenchError(f"{spelled(mode, value)}: {allowed} is needed.")


def _check_rank(said: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LorabenchError(f"{said}: a rank is a whole number from 1 on.")
