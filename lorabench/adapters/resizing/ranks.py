"""Which rank each module gets: by its spectrum, by a budget of bytes over all modules, or by a limit."""

import heapq
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from jaxtyping import Float, Int64
from torch import Tensor

from lorabench.adapters.names.identity import component
from lorabench.errors import LorabenchError
from lorabench.lowrank import energy_rank

__all__ = ["budget_ranks", "energy_ranks", "limits_by_module", "spectral_rank"]

_SLACK = 1 - 1e-12


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


def energy_ranks(
    spectra: Mapping[str, Float[Tensor, " k"]], bounds: Mapping[str, tuple[int, int]], share: float | int
) -> dict[str, int]:
    """The fewest singular values of all modules together whose energy Σσ² is a share of the whole adapter's.

    One threshold for all modules: no other choice of as many values keeps more (each is worth its own σ²). What the
    bounds force to be kept counts, and what they forbid is missing.

    Args:
        spectra: module -> σ of ΔW, descending.
        bounds: module -> least and largest rank.
        share: of Σσ² over all modules, above 0 and up to 1.

    Example:
        >>> import torch
        >>> spectra = {"q": torch.tensor([10.0, 1.0]), "v": torch.tensor([2.0, 2.0])}
        >>> energy_ranks(spectra, dict.fromkeys(spectra, (0, 2)), 0.98)
        {'q': 1, 'v': 2}
    """
    energies = {name: sigma.double().square().tolist() for name, sigma in spectra.items()}
    ranks = {name: least for name, (least, _) in bounds.items()}
    missing = share * _SLACK * sum(map(sum, energies.values()))
    missing -= sum(sum(values[: ranks[name]]) for name, values in energies.items())
    offered = (
        (-values[place], order, name)
        for order, (name, values) in enumerate(energies.items())
        for place in range(ranks[name], bounds[name][1])
    )
    for gain, _, name in sorted(offered):
        if missing <= 0 or gain == 0:
            break
        ranks[name] += 1
        missing += gain
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
