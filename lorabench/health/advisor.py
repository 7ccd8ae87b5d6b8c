"""Which rank an adapter needs, read off its spectrum: one threshold over all modules, beside two baselines."""

import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.comparing.spectra import spectra
from lorabench.adapters.places import module_type
from lorabench.adapters.resizing.ranks import budget_ranks, energy_ranks
from lorabench.errors import LorabenchError
from lorabench.health.kohya import block_dims
from lorabench.health.shuffling import shuffled

__all__ = ["Advice", "Choice", "advise"]

_DRAWS = 20


@dataclass(frozen=True)
class Choice:
    """Ranks of all modules, and what they lose.

    Attributes:
        name: how they were chosen.
        ranks: module -> rank; 0 where ΔW is zero.
        parameters: numbers in all factors.
        error: ‖ΔW − ΔW'‖_F / ‖ΔW‖_F of the whole adapter, cut at these ranks by SVD.
    """

    name: str
    ranks: Mapping[str, int]
    parameters: int
    error: float


@dataclass(frozen=True)
class Advice:
    """What to take, and what it stands beside.

    Attributes:
        now: the ranks that the adapter has.
        advised: by one threshold over all modules.
        uniform: one rank for all modules, the largest that takes no more parameters than the advised ones.
        shuffled: the advised ranks on other modules of the same shape and rank: the mean error of 20 draws. The gap
            to it is what knowing the modules is worth; where there is hardly one, any modules would do.
        shuffled_errors: of each draw.
        by_type: attention, feed-forward or other -> (modules, their mean rank now, their mean advised rank).
        rank_pattern: PEFT's, of modules whose rank is not `rank`; names end PEFT's own.
        alpha_pattern: PEFT's, of modules whose α is not `alpha`; the scale of every module stays.
        rank: PEFT's `r`, the most frequent advised rank.
        alpha: PEFT's `lora_alpha`.
        block_dims: kohya's 25 `block_dims` of an SD 1 or SD 2 U-Net, the largest rank of each block; None of others.
        command: that resizes the file so.
    """

    now: Choice
    advised: Choice
    uniform: Choice
    shuffled: float
    shuffled_errors: Sequence[float]
    by_type: Mapping[str, tuple[int, float, float]]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank: int
    alpha: float
    block_dims: Sequence[int] | None
    command: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        choices = {name: vars(getattr(self, name)) for name in ("now", "advised", "uniform")}
        return {**vars(self), **choices}


def advise(
    modules: Mapping[str, LoraModule], loss: float = 0.01, parameters: int | None = None, seed: int = 0
) -> Advice:
    """Ranks for a loss of energy, or for a number of parameters.

    For a loss, one threshold of σ over all modules keeps the fewest values; for a budget, the values that save most
    energy for their parameters. Both are of the spectrum as it is: what a training at these ranks would have found is
    not known from it.

    Args:
        modules: an adapter's.
        loss: share of Σσ² over all modules that may go, from 0 to below 1.
        parameters: numbers that all factors may have; None: as many as the loss asks for.
        seed: of the shuffled baseline.

    Raises:
        LorabenchError: no module is trained, or the loss or the budget cannot be.

    Example:
        >>> import torch
        >>> down = torch.eye(3, 8)
        >>> strong, weak = torch.tensor([9.0, 5.0, 0.1]).diag(), torch.tensor([1.0, 0.1, 0.1]).diag()
        >>> found = advise({"a.q": LoraModule(down, strong), "a.v": LoraModule(down, weak)}, loss=0.01)
        >>> found.advised.ranks, found.uniform.ranks, round(found.advised.error, 3)
        ({'a.q': 2, 'a.v': 1}, {'a.q': 1, 'a.v': 1}, 0.017)
    """
    if not 0 <= loss < 1:
        raise LorabenchError(f"loss={loss!r}: a share of the energy from 0 to below 1 is needed, 0.01 say.")
    sigmas = spectra(modules)
    trained = {name: sigma for name, sigma in sigmas.items() if bool(sigma.any())}
    if not trained:
        raise LorabenchError("no module is trained, every ΔW is zero: there is no spectrum to read a rank off.")
    tally = _tally(modules, sigmas)
    cost = {name: sum(modules[name].shape) for name in trained}
    bounds = {name: (1, min(modules[name].rank, *modules[name].shape)) for name in trained}
    if parameters is None:
        ranks = energy_ranks(trained, bounds, 1.0 - loss)
    else:
        least = sum(cost.values())
        if parameters < least:
            raise LorabenchError(f"parameters={parameters}: rank 1 everywhere takes {least}. Allow that many at least.")
        ranks = budget_ranks(trained, cost, bounds, parameters)
    advised = tally("one threshold" if parameters is None else "budget", ranks)
    uniform = _uniform(advised, bounds, tally)
    errors = _shuffled(advised.ranks, modules, tally, seed)
    alphas = {name: abs(modules[name].scale) * rank for name, rank in ranks.items()}
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    return Advice(
        now=tally("now", {name: modules[name].rank for name in trained}),
        advised=advised,
        uniform=uniform,
        shuffled=statistics.fmean(errors),
        shuffled_errors=errors,
        by_type=_by_type(modules, ranks),
        rank_pattern={name: value for name, value in ranks.items() if value != rank},
        alpha_pattern={name: value for name, value in alphas.items() if value != alpha},
        rank=rank,
        alpha=alpha,
        block_dims=block_dims(ranks),
        command=_command(loss, parameters),
    )


def _tally(
    modules: Mapping[str, LoraModule], sigmas: Mapping[str, Float64[Tensor, " r"]]
) -> Callable[[str, Mapping[str, int]], Choice]:
    """What makes a choice of ranks: its parameters and its error, from running sums of σ²."""
    kept = {name: [0.0, *accumulate(sigma.square().tolist())] for name, sigma in sigmas.items()}
    whole = sum(sums[-1] for sums in kept.values())

    def choice(name: str, ranks: Mapping[str, int]) -> Choice:
        lost = sum(sums[-1] - sums[min(ranks.get(one, 0), len(sums) - 1)] for one, sums in kept.items())
        numbers = sum(sum(modules[one].shape) * rank for one, rank in ranks.items())
        return Choice(name, {one: ranks.get(one, 0) for one in modules}, numbers, (max(lost, 0.0) / whole) ** 0.5)

    return choice


def _uniform(
    advised: Choice, bounds: Mapping[str, tuple[int, int]], tally: Callable[[str, Mapping[str, int]], Choice]
) -> Choice:
    best = tally("uniform", dict.fromkeys(bounds, 1))
    for rank in range(2, max(most for _, most in bounds.values()) + 1):
        larger = tally("uniform", {name: min(rank, most) for name, (_, most) in bounds.items()})
        if larger.parameters > advised.parameters:
            break
        best = larger
    return best


def _shuffled(
    ranks: Mapping[str, int],
    modules: Mapping[str, LoraModule],
    tally: Callable[[str, Mapping[str, int]], Choice],
    seed: int,
) -> list[float]:
    """Errors of the ranks on other modules of the same shape and rank, which cost the same."""
    generator = random.Random(seed)  # noqa: S311  # a baseline, no secret
    kinds = {name: (modules[name].shape, modules[name].rank) for name in ranks}
    trained = {name: rank for name, rank in ranks.items() if rank}
    return [tally("shuffled", shuffled(trained, kinds, generator)).error for _ in range(_DRAWS)]


def _by_type(modules: Mapping[str, LoraModule], ranks: Mapping[str, int]) -> dict[str, tuple[int, float, float]]:
    types: dict[str, list[str]] = {}
    for name in ranks:
        types.setdefault(module_type(name), []).append(name)
    return {
        kind: (
            len(names),
            statistics.fmean(modules[name].rank for name in names),
            statistics.fmean(ranks[name] for name in names),
        )
        for kind, names in sorted(types.items())
    }


def _command(loss: float, parameters: int | None) -> str:
    if parameters is None:
        return f"lorabench-adapter resize FILE --total-energy {1 - loss:g} -o SMALLER"
    return f"lorabench-adapter resize FILE --parameters {parameters} -o SMALLER"
