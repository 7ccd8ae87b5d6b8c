"""Adapters as they may come: re-gauged, rounded, resized, rescaled, in part, merged with a stranger, or with noise.

An `Alteration` makes of a zoo of n adapters another of the same n. It is pure: what it draws follows from the generator
that it is given. Rows and columns beyond an adapter's true rank stay zero.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lorabench import lowrank
from lorabench.errors import LorabenchError
from lorabench.representations.views import gauges
from lorabench.text import some
from lorabench.zoo import Stack, Zoo

__all__ = [
    "Alteration",
    "merged",
    "noisy",
    "regauged",
    "rescaled",
    "resized",
    "stored",
    "with_modules_missing",
]

Alteration = Callable[[Zoo, np.random.Generator], Zoo]

_HALVINGS = 60  # of the interval in which a root lies: to 1e-18 of it


class _Factors(NamedTuple):
    """One module of n adapters: ΔW = scale · up @ down, zero beyond `rank`."""

    down: Float64[Tensor, "n r d_in"]
    up: Float64[Tensor, "n d_out r"]
    scale: Float64[Tensor, " n"]
    rank: Int64[Tensor, " n"]

    def written(
        self, left: Float64[Tensor, "n d_out k"], sigma: Float64[Tensor, "n k"], right: Float64[Tensor, "n k d_in"]
    ) -> "_Factors":
        """Other factors of the same scale and rank: the first `rank` singular values, √(σ/|scale|) on either side.

        As `lorabench.adapters resize` writes them. Where the scale is zero it becomes 1.
        """
        scale = torch.where(self.scale == 0, 1.0, self.scale)
        kept = torch.arange(sigma.shape[-1]) < self.rank[:, None]
        half = torch.where(kept, (sigma / scale.abs()[:, None]).sqrt(), 0.0)
        down, up = torch.zeros_like(self.down), torch.zeros_like(self.up)
        k = min(sigma.shape[-1], down.shape[1])
        down[:, :k] = (half[..., None] * right)[:, :k]
        up[..., :k] = (left * (half * scale.sign()[:, None])[:, None])[..., :k]
        return _Factors(down, up, scale, self.rank)

    def where(self, rows: Tensor, other: "_Factors") -> "_Factors":
        """These factors of the adapters `rows` [n], the other's of all others: to the bit."""
        return _Factors(
            *(
                torch.where(rows.reshape(-1, *[1] * (ours.ndim - 1)), ours, theirs)
                for ours, theirs in zip(self, other, strict=True)
            )
        )


def _by_module(zoo: Zoo, change: Callable[[int, _Factors], _Factors]) -> Zoo:
    """The zoo with other modules; `change` is given a module's number and its factors. Lone layers stay."""
    layers, rank, scale = dict(zoo.layers), zoo.rank.copy(), zoo.scale.copy()
    for number, module in enumerate(zoo.modules):
        down, up = (torch.from_numpy(zoo.read(name).astype(np.float64)) for name in (module.down, module.up))
        own = torch.from_numpy(scale[:, number].astype(np.float64)), torch.from_numpy(rank[:, number].copy())
        made = change(number, _Factors(down, up, *own))
        layers[module.down], layers[module.up] = (Stack((one.float().numpy(),)) for one in (made.down, made.up))
        scale[:, number], rank[:, number] = made.scale.float().numpy(), made.rank.numpy()
    return replace(zoo, layers=layers, rank=rank, scale=scale)


def regauged(zoo: Zoo, rng: np.random.Generator, condition: float | int) -> Zoo:
    """The same ΔW by other factors: (up·G, G⁻¹·down), a random G of every adapter's own rank and module.

    Args:
        zoo: the adapters.
        rng: draws the gauges (`lorabench.representations.views.gauges`).
        condition: the largest condition number of G; 1 for rotations and reflections alone.
    """
    seed = int(rng.integers(2**31))

    def change(number: int, own: _Factors) -> _Factors:
        down, up = own.down.clone(), own.up.clone()
        for r in set(own.rank.tolist()):
            rows = own.rank == r
            key = torch.tensor((seed + 1_000_003 * number + 7919 * r) % 2**31, dtype=torch.int32)
            if r:
                g, inverse = gauges(key, int(rows.sum()), r, condition, torch.float64)
                up[rows, :, :r] = own.up[rows, :, :r] @ g
                down[rows, :r] = inverse @ own.down[rows, :r]
        return own._replace(down=down, up=up)

    return _by_module(zoo, change)


def stored(zoo: Zoo, rng: np.random.Generator, dtype: str) -> Zoo:
    """Every layer rounded to a storage type, and read back as float32.

    float16 and bfloat16 round to nearest; what is beyond float16's ±65504 is set to it. int8 has one step a layer and
    adapter, max|w| / 127, and rounds to the nearest multiple of it.

    Args:
        zoo: the adapters.
        rng: nothing is drawn.
        dtype: float16, bfloat16 or int8.
    """
    del rng

    def rounded(values: Tensor) -> Tensor:
        if dtype == "int8":
            step = values.abs().amax((1, 2), keepdim=True).double() / 127
            return (torch.where(step > 0, values / step, 0.0).round() * step).float()
        to: torch.dtype = getattr(torch, dtype)
        limits = torch.finfo(to)
        return values.clamp(limits.min, limits.max).to(to).float()

    layers = {name: Stack((rounded(torch.from_numpy(zoo.read(name).copy())).numpy(),)) for name in zoo.layers}
    return replace(zoo, layers=layers)


def resized(zoo: Zoo, rng: np.random.Generator, energy: float | int = 1.0, share: float | int = 1.0) -> Zoo:
    """Every module at its first k singular values, written as `lorabench.adapters resize` does.

    k is the fewest that keep `energy` of Σσ², and at most `share` of the module's rank, rounded down; at least 1. A
    module that loses nothing keeps its factors to the bit.
    """
    del rng

    def change(_number: int, own: _Factors) -> _Factors:
        left, sigma, right = lowrank.thin_svd(own.down, own.up, own.scale)
        wanted = torch.minimum(lowrank.energy_rank(sigma, energy), (own.rank * share).long()).clamp_min(1)
        cut = (wanted < own.rank) & (sigma[:, 0] > 0)
        return own._replace(rank=torch.minimum(wanted, own.rank)).written(left, sigma, right).where(cut, own)

    return _by_module(zoo, change)


def rescaled(zoo: Zoo, rng: np.random.Generator, factor: float | int) -> Zoo:
    """ΔW times `factor`, by the scale (α) alone."""
    del rng
    return replace(zoo, scale=(zoo.scale * factor).astype(np.float32))


def with_modules_missing(zoo: Zoo, rng: np.random.Generator, share: float | int) -> Zoo:
    """A random `share` of the modules that an adapter has is gone: rank 0, as where a file lacks them.

    At least one goes and one stays.

    Raises:
        LorabenchError: an adapter has a single module.
    """
    present = zoo.rank > 0
    count = np.clip(np.round(share * present.sum(1)), 1, present.sum(1) - 1).astype(np.int64)
    single = [zoo.labels.adapters[row] for row in np.flatnonzero(count < 1)]
    if single:
        raise LorabenchError(
            f"ablation.missing: {some(single)} of {zoo.name} have a single module, and none would be left: give "
            "ablation.missing=[]"
        )
    order = np.where(present, rng.random(present.shape), np.inf).argsort(1).argsort(1)
    gone = torch.from_numpy(order < count[:, None])

    def change(number: int, own: _Factors) -> _Factors:
        nothing = _Factors(torch.zeros_like(own.down), torch.zeros_like(own.up), own.scale, torch.zeros_like(own.rank))
        return nothing.where(gone[:, number], own)

    return _by_module(zoo, change)


def merged(zoo: Zoo, rng: np.random.Generator) -> Zoo:
    """The average of every adapter's ΔW and that of a stranger, a random adapter of another category.

    The average is cut to the larger of the two true ranks, by its SVD, and written as `lorabench.adapters resize` does;
    scale and label stay those of the first.

    Raises:
        LorabenchError: all are of one category.
    """
    category = zoo.labels.category
    others = [np.flatnonzero(category != own) for own in category]
    if not all(map(len, others)):
        raise LorabenchError(
            f"ablation.merged: the {len(zoo)} test adapters of {zoo.name} are of one category, and a stranger is of "
            "another: give ablation.merged=false, or more of ablation.adapters"
        )
    stranger = torch.from_numpy(np.array([rng.choice(rows) for rows in others], np.int64))

    def change(_number: int, own: _Factors) -> _Factors:
        other = _Factors(*(one[stranger] for one in own))
        ups = [one.up * (one.scale / 2)[:, None, None] for one in (own, other)]
        svd = lowrank.thin_svd(torch.cat([own.down, other.down], 1), torch.cat(ups, 2))
        return own._replace(rank=torch.maximum(own.rank, other.rank)).written(*svd)

    return _by_module(zoo, change)


def noisy(zoo: Zoo, rng: np.random.Generator, share: float | int) -> Zoo:
    """Gaussian noise in both factors that moves every ΔW by ‖ΔW' − ΔW‖_F = `share` · ‖ΔW‖_F.

    up' = up + t·s_up·N and down' = down + t·s_down·M, with s the root mean square of a factor's entries within its true
    rank, N and M standard normal, and t solved for, by module and adapter.
    """
    return _by_module(zoo, functools.partial(_with_noise, rng, float(share)))


def _with_noise(rng: np.random.Generator, share: float, _number: int, own: _Factors) -> _Factors:
    inside = (torch.arange(own.down.shape[1]) < own.rank[:, None]).double()
    down_noise, up_noise = (
        torch.from_numpy(rng.standard_normal(tuple(one.shape))) * mask * _size(one, own.rank * length)[:, None, None]
        for one, mask, length in (
            (own.down, inside[..., None], own.down.shape[2]),
            (own.up, inside[:, None], own.up.shape[1]),
        )
    )
    # ΔW' − ΔW = t·A + t²·B, A = up·M + N·down and B = N·M
    first = torch.cat([down_noise, own.down], 1), torch.cat([own.up, up_noise], 2), 1.0
    second = down_noise, up_noise, 1.0
    a, c, b = (lowrank.inner_product(*pair) for pair in ((first, first), (first, second), (second, second)))
    wanted = share**2 * lowrank.inner_product((own.down, own.up, 1.0), (own.down, own.up, 1.0))

    def short(t: Float64[Tensor, " n"]) -> Tensor:
        return t**2 * (a + 2 * t * c + t**2 * b) < wanted

    low, high = torch.zeros_like(a), torch.ones_like(a)
    while bool(short(high).any()):
        high = torch.where(short(high), 2 * high, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = torch.where(short(middle), middle, low), torch.where(short(middle), high, middle)
    t = torch.where(wanted > 0, low, 0.0)[:, None, None]
    return own._replace(down=own.down + t * down_noise, up=own.up + t * up_noise)


def _size(values: Float64[Tensor, "n rows cols"], entries: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Root mean square of so many entries; 0 of none."""
    mean: Float64[Tensor, " n"] = values.square().sum((1, 2)) / entries.clamp_min(1)
    return mean.sqrt()
