"""Ranks before a training, from the gradient of the weights themselves over a few batches, without an update."""

import random
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from scipy.stats import spearmanr
from torch import Tensor, nn

from lorabench.adapters.writing.configuration import pattern_key
from lorabench.errors import LorabenchError
from lorabench.health.shuffling import shuffled
from lorabench.lowrank import effective_rank, matrix_singular_values
from lorabench.machine import map_in_lanes

__all__ = ["Allotment", "ModuleGradient", "allot_ranks"]

_LARGEST = 2048  # of the short side, whose Gram matrix has all singular values
_SKETCHED = 256
_ITERATIONS = 4
_DRAWS = 20


@dataclass(frozen=True)
class ModuleGradient:
    """One weight W [d_out, d_in], and its gradient G over all batches.

    Attributes:
        module: its name.
        shape: (d_out, d_in), as the model has it: GPT-2's Conv1D have it the other way about.
        importance: mean |W ∘ G| over the entries (GoRA, He et al. 2025).
        effective_rank: exp(entropy of σ/Σσ) of G. Known to be 30 to 1,000 where r = 16 does, so it is no r by itself;
            None of a G whose short side is above 2,048, of which only the first 256 values are computed.
        rank: what is allotted.
    """

    module: str
    shape: tuple[int, int]
    importance: float
    effective_rank: float | None
    rank: int


@dataclass(frozen=True)
class Allotment:
    """Ranks for all weights.

    Attributes:
        modules: a row for each, in the model's order.
        rank: that the budget is reckoned by, PEFT's `r`.
        rank_pattern: PEFT's, of the modules that get another; each fits one module alone (`pattern_key`).
        parameters: numbers in all factors at the allotted ranks, at most `uniform_parameters`, at `rank` everywhere.
        agreement: Spearman's correlation of the importance of the even batches with that of the odd ones: how sure
            the order is. None of fewer than two batches, or modules.
        captured: share of Σ‖G‖² in the first r_l singular values of every module.
        captured_uniform: the same at `rank` everywhere.
        captured_shuffled: the same with the allotted ranks on other modules of one shape, the mean of 20 draws.
    """

    modules: Sequence[ModuleGradient]
    rank: int
    rank_pattern: Mapping[str, int]
    parameters: int
    uniform_parameters: int
    agreement: float | None
    captured: float
    captured_uniform: float
    captured_shuffled: float


def allot_ranks(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    rank: int = 16,
    targets: Collection[str] | None = None,
    seed: int = 0,
) -> Allotment:
    """Allot ranks under the parameter budget of one uniform rank, by the importance of every weight.

    r_l = round(P·α_l / √(d_in + d_out)), α_l the module's share of the importance and P = Σ rank·√(d_in + d_out),
    kept within ⌈rank/2⌉, 4·rank and the weight's short side (GoRA, arXiv 2502.12171). What the factors then have more
    than at `rank` everywhere is taken from the least important modules, and what is left goes to the most important
    ones, within the same bounds, until no module's next rank fits.

    The model is left as it was: no update, and gradients, flags and its mode are put back; it is in `eval` mode
    meanwhile, so that nothing is dropped at random.

    Args:
        model: the base model, without an adapter.
        loss: of the model and a batch, a scalar.
        batches: a few; two at least, for `agreement`.
        rank: of a uniform adapter of the same budget.
        targets: ends of the names of the modules that shall be adapted ("q_proj"); None: every linear one.
        seed: of the shuffled baseline.

    Raises:
        LorabenchError: no batch, no such module, a rank below 1, or a gradient that is missing or not finite.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise LorabenchError(f"rank={rank!r}: a whole number from 1 on is needed.")
    weights = _targets(model, targets)
    halves = [{name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()} for _ in "01"]
    count = 0
    with _gradients_of(model, list(weights.values())):
        for count, batch in enumerate(batches, start=1):
            torch.autograd.backward(loss(model, batch))
            for name, weight in weights.items():
                if weight.grad is None or not bool(torch.isfinite(weight.grad).all()):
                    raise LorabenchError(f"{name}: its gradient is missing or not finite. Check the loss and targets.")
                halves[count % 2][name] += weight.grad
                weight.grad = None
    if not count:
        raise LorabenchError("no batch came: give a few, of the data that the adapter shall be trained on.")
    return _allotted(weights, halves, rank, count, seed)


def _targets(model: nn.Module, targets: Collection[str] | None) -> dict[str, nn.Parameter]:
    """Name -> weight of the modules that shall be adapted."""
    weights: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        wanted = linear if targets is None else any(name == end or name.endswith(f".{end}") for end in targets)
        if wanted and isinstance(weight, nn.Parameter) and weight.ndim == 2 and weight.is_floating_point():
            weights[name] = weight
    if not weights:
        what = "" if targets is None else f" whose name ends in {', '.join(targets)}"
        raise LorabenchError(f"{type(model).__name__}: no linear module{what}. Name the ends of some in targets.")
    return weights


@contextmanager
def _gradients_of(model: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """These weights alone require gradients, and the model does not train; all is put back."""
    modes = {module: module.training for module in model.modules()}
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    wanted = {id(weight) for weight in weights}
    try:
        model.eval()
        for parameter, _, _ in before:
            parameter.grad = None
            parameter.requires_grad_(id(parameter) in wanted)
        with torch.enable_grad():
            yield
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
        for module, mode in modes.items():
            module.training = mode


def _allotted(
    weights: Mapping[str, nn.Parameter],
    halves: Sequence[Mapping[str, Float[Tensor, "d_out d_in"]]],
    rank: int,
    count: int,
    seed: int,
) -> Allotment:
    gradients = {name: sum((half[name] for half in halves), torch.zeros(())) for name in weights}
    importance = {name: _importance(weight, gradients[name]) for name, weight in weights.items()}
    ranks = _by_importance(weights, importance, rank)
    most = {name: max(value, rank) for name, value in ranks.items()}
    found = map_in_lanes(lambda name: _spectrum(gradients[name], most[name]), gradients)
    spectra = dict(zip(gradients, found, strict=True))
    captured = _captured(gradients, spectra)
    shapes = {name: weight.shape for name, weight in weights.items()}
    generator = random.Random(seed)  # noqa: S311  # a baseline, no secret
    rows = [
        ModuleGradient(
            module=name,
            shape=(weight.shape[0], weight.shape[1]),
            importance=importance[name],
            effective_rank=float(effective_rank(spectra[name])) if min(weight.shape) <= _LARGEST else None,
            rank=ranks[name],
        )
        for name, weight in weights.items()
    ]
    return Allotment(
        modules=rows,
        rank=rank,
        rank_pattern={pattern_key(name): value for name, value in ranks.items() if value != rank},
        parameters=sum(ranks[name] * sum(weight.shape) for name, weight in weights.items()),
        uniform_parameters=sum(rank * sum(weight.shape) for weight in weights.values()),
        agreement=_agreement(weights, halves) if count > 1 and len(weights) > 1 else None,
        captured=captured(ranks),
        captured_uniform=captured(dict.fromkeys(ranks, rank)),
        captured_shuffled=statistics.fmean(captured(shuffled(ranks, shapes, generator)) for _ in range(_DRAWS)),
    )


def _importance(weight: Tensor, gradient: Tensor) -> float:
    return float((weight.detach().float() * gradient).abs().mean(dtype=torch.float64))


def _by_importance(weights: Mapping[str, nn.Parameter], importance: Mapping[str, float], rank: int) -> dict[str, int]:
    whole = sum(importance.values())
    if not whole > 0:
        raise LorabenchError("every gradient is zero: the loss does not depend on these modules. Check the loss.")
    sizes = {name: sum(weight.shape) ** 0.5 for name, weight in weights.items()}
    budget = rank * sum(sizes.values())
    bounds = {
        name: (min(-(-rank // 2), *weight.shape), min(4 * rank, *weight.shape)) for name, weight in weights.items()
    }
    wanted = {name: round(budget * importance[name] / whole / sizes[name]) for name in weights}
    ranks = {name: max(least, min(wanted[name], most)) for name, (least, most) in bounds.items()}
    cost = {name: sum(weight.shape) for name, weight in weights.items()}
    return _within(ranks, cost, bounds, sorted(weights, key=lambda name: importance[name]), rank * sum(cost.values()))


def _within(
    ranks: Mapping[str, int],
    cost: Mapping[str, int],
    bounds: Mapping[str, tuple[int, int]],
    order: Sequence[str],
    budget: int,
) -> dict[str, int]:
    """The ranks, less of the first in this order and then more of the last, so that no further one fits the budget."""
    ranks = dict(ranks)
    left = budget - sum(cost[name] * rank for name, rank in ranks.items())
    for name in order:
        taken = min(ranks[name] - bounds[name][0], -(left // cost[name])) if left < 0 else 0
        ranks[name] -= taken
        left += taken * cost[name]
    for name in reversed(order):
        given = min(bounds[name][1] - ranks[name], left // cost[name])
        ranks[name] += given
        left -= given * cost[name]
    return ranks


def _spectrum(gradient: Float[Tensor, "d_out d_in"], most: int) -> Float64[Tensor, " k"]:
    """All singular values, by the Gram matrix of the short side; the first of a large matrix, by a random sketch."""
    if min(gradient.shape) <= _LARGEST:
        return matrix_singular_values(gradient)
    start = torch.randn(gradient.shape[1], max(_SKETCHED, most + 16), generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(gradient @ start.to(gradient)).Q
    for _ in range(_ITERATIONS):  # subspace iteration (Halko et al. 2011)
        basis = torch.linalg.qr(gradient @ torch.linalg.qr(gradient.mT @ basis).Q).Q
    return matrix_singular_values(basis.mT @ gradient)


def _captured(
    gradients: Mapping[str, Tensor], spectra: Mapping[str, Float64[Tensor, " k"]]
) -> Callable[[Mapping[str, int]], float]:
    whole = sum(float(gradient.square().sum(dtype=torch.float64)) for gradient in gradients.values())
    return lambda ranks: sum(float(spectra[name][:rank].square().sum()) for name, rank in ranks.items()) / whole


def _agreement(
    weights: Mapping[str, nn.Parameter], halves: Sequence[Mapping[str, Float[Tensor, "d_out d_in"]]]
) -> float | None:
    both = [[_importance(weight, half[name]) for name, weight in weights.items()] for half in halves]
    if any(len(set(one)) == 1 for one in both):
        return None
    return float(spearmanr(*both).statistic)
