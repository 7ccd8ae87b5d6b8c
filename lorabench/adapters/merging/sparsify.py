"""Merging on dense ΔW: TIES (Yadav et al. 2023), DARE (Yu et al. 2023), magnitude pruning; and back to a factor pair.

`deltas` may be a list of matrices, or anything that gives them anew each time it is gone through: then only a
few matrices are in memory at a time, however many are merged.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorabench.adapters.merging.recipe import Majority

__all__ = ["best_pair", "dare_linear", "dare_ties", "drop", "magnitude_prune", "ties", "trim"]

Matrices = Iterable[Float[Tensor, "d_out d_in"]]

_CHUNK = 2**22  # entries that are cast to float64 at a time


def trim(delta: Float[Tensor, "d_out d_in"], density: float | int) -> Float[Tensor, "d_out d_in"]:
    """ΔW with its int(density · n) entries of largest magnitude (one at least), the others 0.

    Entries that equal the smallest one kept are kept too, so that the result does not depend on their order.
    """
    if density >= 1:
        return delta
    sizes = delta.abs().flatten()
    keep = max(1, int(density * sizes.numel()))
    return torch.where(delta.abs() >= sizes.kthvalue(sizes.numel() - keep + 1).values, delta, 0.0)


def drop(delta: Float[Tensor, "d_out d_in"], density: float | int, seed: int) -> Float[Tensor, "d_out d_in"]:
    """ΔW with each entry kept by chance `density` and divided by it, the others 0: "drop and rescale" of DARE.

    Args:
        delta: ΔW.
        density: share that is kept, in (0, 1].
        seed: of the mask.
    """
    if density >= 1:
        return delta
    generator = torch.Generator(device=delta.device).manual_seed(seed)
    return delta * torch.empty_like(delta).bernoulli_(density, generator=generator) / density


def ties(
    deltas: Matrices, weights: Sequence[float | int], density: float | int, majority: Majority = "total"
) -> Float[Tensor, "d_out d_in"]:
    """Trim, elect a sign, merge what agrees with it: TIES (Yadav et al. 2023, "TIES-Merging").

    An entry of the result is Σ |w_i|·τ_i over the adapters that agree with the elected sign, divided by their
    number: the disjoint mean, as PEFT has it (`peft.utils.merge_utils.ties`). τ_i is the trimmed ΔW_i, negated
    where w_i < 0; who weighs 0, or was trimmed there, has no vote.

    Args:
        deltas: ΔW of each adapter, [d_out, d_in].
        weights: one for each.
        density: share of the entries that trimming keeps, in (0, 1].
        majority: "total": the sign of Στ_i, which is 0, and so is the result, where they cancel exactly;
            "count": the sign that more adapters have, by total where as many have the other (PEFT takes +
            in both cases).
    """
    return _elected(_Each(deltas, lambda delta, _: trim(delta, density)), weights, majority)


def dare_ties(
    deltas: Matrices,
    weights: Sequence[float | int],
    density: float | int,
    seeds: Sequence[int],
    majority: Majority = "total",
) -> Float[Tensor, "d_out d_in"]:
    """`drop` in place of `ties`' trimming, the rest as there (Yu et al. 2023, "Language Models are Super Mario")."""
    return _elected(_Each(deltas, lambda delta, i: drop(delta, density, seeds[i])), weights, majority)


def dare_linear(
    deltas: Matrices, weights: Sequence[float | int], density: float | int, seeds: Sequence[int]
) -> Float[Tensor, "d_out d_in"]:
    """Σ w_i · drop(ΔW_i) (Yu et al. 2023): Σ w_i · ΔW_i in expectation over the masks."""
    return _sum(drop(delta, density, seed) * weight for delta, weight, seed in zip(deltas, weights, seeds, strict=True))


def magnitude_prune(
    deltas: Matrices, weights: Sequence[float | int], density: float | int
) -> Float[Tensor, "d_out d_in"]:
    """Σ w_i · trim(ΔW_i), not rescaled, as PEFT has it."""
    return _sum(trim(delta, density) * weight for delta, weight in zip(deltas, weights, strict=True))


def best_pair(
    delta: Float32[Tensor, "d_out d_in"], rank: int
) -> tuple[Float[Tensor, "k d_in"], Float[Tensor, "d_out k"], float]:
    """The factors (down, up) nearest to a dense ΔW, and the distance ‖ΔW − up @ down‖_F that theory predicts.

    The truncated SVD (Eckart & Young 1936) by the eigenvectors of the short side's Gram matrix in float64; both
    factors get √σ.

    Args:
        delta: ΔW.
        rank: of the factors; k = min(rank, d_out, d_in).
    """
    flat = delta if delta.shape[0] <= delta.shape[1] else delta.mT
    width = max(1, _CHUNK // flat.shape[0])
    gram = _sum(part.double() @ part.double().mT for part in _columns(flat, width))
    values, vectors = torch.linalg.eigh(gram)
    values = torch.where(values > values[-1] * len(values) * torch.finfo(torch.float64).eps, values, 0.0)
    k = min(rank, len(values))
    own = vectors[:, -k:].flip(-1)
    other = torch.cat([own.mT @ part.double() for part in _columns(flat, width)], dim=1)
    root = other.norm(dim=1).sqrt()
    own, other = own * root, other / torch.where(root > 0, root, 1.0)[:, None]
    tail = float(values[:-k].sum().sqrt())
    return (other, own, tail) if flat is delta else (own.mT, other.mT, tail)


def _columns(matrix: Float[Tensor, "rows cols"], width: int) -> Iterator[Float[Tensor, "rows some"]]:
    return (matrix[:, start : start + width] for start in range(0, matrix.shape[1], width))


class _Each:
    """Every matrix after a function of it and its position, made anew each time it is gone through."""

    def __init__(self, deltas: Iterable[Tensor], function: Callable[[Tensor, int], Tensor]) -> None:
        self._deltas, self._function = deltas, function

    def __iter__(self) -> Iterator[Tensor]:
        return (self._function(delta, i) for i, delta in enumerate(self._deltas))


def _elected(parts: _Each, weights: Sequence[float | int], majority: Majority) -> Tensor:
    signs = [(weight > 0) - (weight < 0) for weight in weights]
    elected = _sum(part * sign for part, sign in zip(parts, signs, strict=True)).sign_()
    if majority == "count":
        count = _sum(part.sign() * sign for part, sign in zip(parts, signs, strict=True)).sign_()
        elected = torch.where(count == 0, elected, count)
    total, number = torch.zeros_like(elected), torch.zeros_like(elected)
    for part, sign, weight in zip(parts, signs, weights, strict=True):
        agrees = part * sign * elected > 0
        total += torch.where(agrees, part * weight, 0.0)
        number += agrees
    return total / number.clamp_min_(1)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """In place: every part is a matrix of its own, which nobody else holds."""
    parts = iter(parts)
    total = next(parts)
    for part in parts:
        total += part
    return total
