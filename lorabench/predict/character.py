"""What a training leaves in ΔW whatever it was about: how large it is, of what shape, and where it reads and writes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lorabench import lowrank
from lorabench.representations.base import chunks
from lorabench.representations.components import seeded_normal, unit_seed
from lorabench.representations.reading import scaled_factors
from lorabench.zoo import Module, Zoo

__all__ = ["DIRECTIONS", "TRAITS", "Span", "character", "mean_traits", "spans", "trait_text"]

TRAITS = {
    "norm": "‖ΔW‖",
    "first": "share of the largest singular value in ‖ΔW‖²",
    "two": "share of the largest two singular values in ‖ΔW‖²",
    "read": "share of ΔW that reads what the training adapters read",
    "written": "share of ΔW that writes where the training adapters write",
}
"""What is looked at of every module. Taking away 5 % of ‖ΔW‖² changes each of them by 5 % at most or so."""

DIRECTIONS = 16
"""Of input and of output that are kept of a module, at most."""

_CPU = torch.device("cpu")
_ITERATIONS = 2


class Span(NamedTuple):
    """Where the ΔW of the training adapters lie in one module: orthonormal columns, by falling energy or so."""

    read: Float64[Tensor, "d_in q"]
    written: Float64[Tensor, "d_out q"]


def spans(zoo: Zoo) -> dict[str, Span]:
    """Directions of input and output that hold the most of the ΔW of these adapters, each scaled to ‖ΔW‖ = 1.

    At most 16 and at most half of a side, by two steps of subspace iteration from a seeded block (Halko, Martinsson &
    Tropp 2011).
    """
    return {module.name: _span(zoo, module) for module in zoo.modules}


def _span(zoo: Zoo, module: Module) -> Span:
    _, d_in, d_out = zoo.shape_of(module.name)
    seed = unit_seed(0, module.name)
    read, written = (
        torch.linalg.qr(seeded_normal(size, max(1, min(DIRECTIONS, size // 2)), seed, _CPU))[0]
        for size in (d_in, d_out)
    )
    for _ in range(_ITERATIONS):
        into, out = torch.zeros_like(read), torch.zeros_like(written)
        for start, stop in chunks(zoo, (module.down, module.up)):
            down, up = scaled_factors(zoo, module.name, _CPU, start, stop)
            size = lowrank.frobenius_norm(down, up)[:, None, None].square().clamp(min=1e-300)
            into += (down.mT @ (up.mT @ up @ (down @ read)) / size).sum(0)
            out += (up @ (down @ down.mT @ (up.mT @ written)) / size).sum(0)
        read, written = torch.linalg.qr(into)[0], torch.linalg.qr(out)[0]
    return Span(read, written)


def character(zoo: Zoo, known: Mapping[str, Span]) -> Float64[np.ndarray, "n modules traits"]:
    """`TRAITS` of every module, the norm as its logarithm; NaN where an adapter has no ΔW there.

    They follow from ΔW alone, so no gauge, padding or name changes them.
    """
    return np.stack([_of_module(zoo, module, known[module.name]) for module in zoo.modules], 1)


def _of_module(zoo: Zoo, module: Module, span: Span) -> Float64[np.ndarray, "n traits"]:
    found = []
    for start, stop in chunks(zoo, (module.down, module.up)):
        down, up = scaled_factors(zoo, module.name, _CPU, start, stop)
        gram_down, gram_up = down @ down.mT, up.mT @ up
        energy = lowrank.singular_values_of_grams(gram_down, gram_up).square()
        total = energy.sum(-1)
        read, written = down @ span.read, up.mT @ span.written
        parts = [
            energy[:, 0],
            energy[:, :2].sum(-1),
            _energy(read @ read.mT, gram_up),
            _energy(gram_down, written @ written.mT),
        ]
        known = torch.where(total > 0, total, torch.nan)
        found.append(torch.stack([known.log() / 2, *(part / known for part in parts)], 1))
    return torch.cat(found).numpy()


def _energy(gram_down: Float64[Tensor, "n r r"], gram_up: Float64[Tensor, "n r r"]) -> Float64[Tensor, " n"]:
    """‖up @ down‖² of each from down·downᵀ and upᵀ·up."""
    return (gram_down * gram_up).sum((-2, -1))


def mean_traits(found: Float[np.ndarray, "n modules traits"]) -> Float64[np.ndarray, "modules traits"]:
    """Mean over the adapters that have a ΔW there; where none has, over all modules that some have."""
    there = ~np.isnan(found)
    totals, counts = np.where(there, found, 0).sum(0), there.sum(0)
    overall = totals.sum(0) / np.maximum(counts.sum(0), 1)
    means: Float64[np.ndarray, "modules traits"] = np.where(counts > 0, totals / np.maximum(counts, 1), overall)
    return means


def trait_text(
    own: Float[np.ndarray, " traits"], mean: Float[np.ndarray, " traits"], spread: Float[np.ndarray, " traits"]
) -> str:
    """In words, in which of the traits an adapter is farthest from the training adapters, in their deviations."""
    names: Sequence[str] = tuple(TRAITS)
    number = int(np.argmax(np.abs(own - mean) / np.maximum(spread, 1e-6)))
    if names[number] == "norm":
        low, high = np.exp(mean[number] - 2 * spread[number]), np.exp(mean[number] + 2 * spread[number])
        return f"{TRAITS['norm']} {np.exp(own[number]):.3g} a module, where theirs is {low:.3g} to {high:.3g}"
    return f"{TRAITS[names[number]]} {own[number]:.2f}, where theirs is {mean[number]:.2f} ± {spread[number]:.2f}"
