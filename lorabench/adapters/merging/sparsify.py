"""Dense ΔW with entries left out, and what the methods on ΔW make of several.

Matrices may come from a list, or from anything that gives them anew each time it is gone through: then only a few are
in memory at a time, however many are merged. None of these functions changes a matrix that it is given.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardshrink

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.merging.recipe import Majority

__all__ = ["Deltas", "Matrices", "drop", "each", "elected", "trim", "weighted_sum"]

_CHUNK = 2**15

Matrices = Iterable[Float[Tensor, "d_out d_in"]]


def trim(delta: Float[Tensor, "d_out d_in"], density: float | int) -> Float[Tensor, "d_out d_in"]:
    """ΔW with its int(density · n) entries of largest magnitude (one at least), the others 0.

    Entries that equal the smallest one kept are kept too, so that the result does not depend on their order.

    >>> trim(torch.tensor([[2.0, -2.0, 1.0, 3.0]]), 0.5).tolist()
    [[2.0, -2.0, 0.0, 3.0]]
    """
    if density >= 1:
        return delta
    sizes = delta.abs()
    ordered = sizes.flatten().clone().numpy()
    cut = ordered.size - max(1, int(density * ordered.size))
    ordered.partition(cut)  # ten times as fast as kthvalue
    below = np.nextafter(ordered[cut], np.float32(0))  # of float32 nothing lies between it and the smallest one kept
    kept: Float[Tensor, "d_out d_in"] = hardshrink(delta, float(below))  # thirty times as fast as torch.where
    return kept


def drop(delta: Float[Tensor, "d_out d_in"], density: float | int, seed: int) -> Float[Tensor, "d_out d_in"]:
    """ΔW with each entry kept by chance `density` and divided by it, the others 0: "drop and rescale" of DARE.

    Args:
        delta: ΔW.
        density: share that is kept, in (0, 1].
        seed: of the mask, which is the same on every machine.
    """
    if density >= 1:
        return delta
    draws = np.random.SFC64(seed).random_raw(-(-delta.numel() // 2)).astype("<u8").view("<u4")[: delta.numel()]
    kept = np.less(draws, round(density * 2**32)).reshape(delta.shape)
    return torch.from_numpy(kept * (delta.numpy() / np.float32(density)))


class Deltas:
    """The dense ΔW of modules, made anew each time they are gone through.

    Args:
        modules: of one shape.
        frugal: whether what is made of them may not be kept either, for want of memory.
    """

    def __init__(self, modules: Sequence[LoraModule], frugal: bool) -> None:
        self._modules, self.frugal = modules, frugal

    def __iter__(self) -> Iterator[Float[Tensor, "d_out d_in"]]:
        return (module.delta() for module in self._modules)


def each(deltas: Matrices, function: Callable[[Tensor, int], Tensor]) -> Matrices:
    """Every matrix after a function of it and its position; made anew each time where memory is short."""
    made = _Each(deltas, function)
    return made if isinstance(deltas, Deltas) and deltas.frugal else list(made)


def weighted_sum(matrices: Matrices, weights: Sequence[float | int]) -> Float[Tensor, "d_out d_in"]:
    """Σ w_i · matrix_i.

    >>> weighted_sum([torch.ones(1, 2), torch.eye(1, 2)], [2, -1]).tolist()
    [[1.0, 2.0]]
    """
    pairs = zip(matrices, weights, strict=True)
    first, weight = next(pairs)
    total = first * weight
    for matrix, weight in pairs:
        total.add_(matrix, alpha=weight)
    return total


def elected(
    matrices: Matrices, weights: Sequence[float | int], majority: Majority = "total"
) -> Float[Tensor, "d_out d_in"]:
    """The mean over those that agree with an elected sign: Σ |w_i|·τ_i of them, divided by their number.

    Args:
        matrices: τ_i; negated where w_i < 0. Zeros have no vote.
        weights: w_i; who weighs 0 has no vote.
        majority: "total": the sign of Στ_i, which is 0, and so is the result, where they cancel exactly;
            "count": the sign that more adapters have, by total where as many have the other (PEFT takes +
            in both cases).

    >>> elected([torch.tensor([[4.0, -3.0]]), torch.tensor([[2.0, 5.0]])], [1, 1]).tolist()
    [[3.0, 5.0]]
    """
    if isinstance(matrices, list):  # some rows at a time, which a cache holds
        height = max(1, _CHUNK // matrices[0].shape[1])
        rows = zip(*(matrix.split(height) for matrix in matrices), strict=True)
        return torch.cat([_elected(some, weights, majority) for some in rows])
    return _elected(matrices, weights, majority)


def _elected(matrices: Matrices, weights: Sequence[float | int], majority: Majority) -> Float[Tensor, "d_out d_in"]:
    signs = [(weight > 0) - (weight < 0) for weight in weights]
    elect = weighted_sum(matrices, signs).sign_()
    if majority == "count":
        count = weighted_sum((matrix.sign() for matrix in matrices), signs).sign_()
        elect = torch.where(count == 0, elect, count)
    total, number = torch.zeros_like(elect), torch.zeros_like(elect)
    for matrix, sign, weight in zip(matrices, signs, weights, strict=True):
        agrees = (matrix * elect).mul_(sign).gt_(0)
        total.addcmul_(matrix, agrees, value=weight)
        number += agrees
    return total.div_(number.clamp_(min=1))


class _Each:
    """What a function makes of every matrix and its position, made anew each time it is gone through."""

    def __init__(self, matrices: Matrices, function: Callable[[Tensor, int], Tensor]) -> None:
        self._matrices, self._function = matrices, function

    def __iter__(self) -> Iterator[Tensor]:
        return (self._function(matrix, i) for i, matrix in enumerate(self._matrices))
