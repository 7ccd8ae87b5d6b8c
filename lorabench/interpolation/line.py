"""The straight line between two adapters in a VAE's latent space, decoded and measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from lorabench.lowrank import frobenius_norm, inner_product
from lorabench.representations.autoencoder import relative_error
from lorabench.representations.load_from import Loaded
from lorabench.representations.vae import VAE, VAEModule
from lorabench.zoo import Labels, Stack, Zoo

__all__ = ["End", "Line", "Step", "line_between"]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class End:
    """How well the decoder gives back one of the two adapters.

    Attributes:
        name: the adapter.
        weights_error: Σ(x - x̂)²/Σx² over the standardised weights of all units; 1 is no better than the training mean.
        update_error: ‖ΔŴ - ΔW‖/‖ΔW‖ over all modules; NaN for an adapter without an update.
        part: "train", "val" or "test" of the run, "none" where it was left out; None where that is not known.
    """

    name: str
    weights_error: float
    update_error: float
    part: str | None = None


@dataclass(frozen=True)
class Step:
    """One decoded adapter; ΔW is that of all modules together.

    Attributes:
        t: 0 at A, 1 at B.
        cosine: of its ΔW to A's and to B's; NaN where one of them is zero.
        norm: of its ΔW over A's and over B's; NaN where these are zero.
        cut: norm of what the decoder put beyond both adapters' ranks, and was cut off, over that of the ΔW left.
    """

    t: float
    cosine: tuple[float, float]
    norm: tuple[float, float]
    cut: float


@dataclass(frozen=True)
class Line:
    """The way from A to B.

    Attributes:
        zoo: the decoded adapters, padded to the shapes that the VAE knows.
        ends: A and B.
        steps: what was measured of every decoded adapter.
        cosine: of A's own ΔW to B's.
        norm: of B's own ΔW over A's.
        note: what the decoded adapters are, and are not.
    """

    zoo: Zoo
    ends: tuple[End, End]
    steps: tuple[Step, ...]
    cosine: float
    norm: float
    note: str = ""


def line_between(vae: VAE | Loaded, pair: Zoo, steps: int) -> Line:
    """Decode z(t) = (1 - t)·μ_A + t·μ_B for t = 0, 1/(steps - 1), ..., 1, in every unit of a fitted VAE.

    What is decoded is un-standardised, x̂·scale + mean, and split into its layers. A module has the larger of its two
    ranks at every step, so that nothing of A or B is cut off and the line has no jumps; what the decoder put into rows
    beyond both ranks, which are zero in A and B, is its error and is cut (`Step.cut` says how much). The factor of ΔW,
    which no autoencoder saw, is (1 - t)·scale_A + t·scale_B.

    Args:
        vae: fitted on the layers of `pair`.
        pair: A and B.
        steps: at least 2.
    """
    t = torch.arange(steps, dtype=torch.float64)[:, None] / (steps - 1)
    layers: dict[str, np.ndarray] = {}
    given, returned = [], []
    with torch.no_grad():
        for unit in vae.units(pair):
            latent = vae.features(pair, unit, _CPU).double()
            module = cast("VAEModule", vae.fitted_[unit].on(VAEModule, _CPU))
            names = vae.layers_of(pair, unit)
            raw = torch.cat([_tensor(pair.read(name)).flatten(1) for name in names], 1)
            decoded = module.decoder(((1 - t) * latent[:1] + t * latent[1:]).float())
            given.append(module.standardised(raw))
            returned.append(decoded[[0, -1]])
            layers |= _layers(decoded * module.scale + module.mean, pair, names)
    x, back = torch.cat(given, 1), torch.cat(returned, 1)
    zoo, cut = _cut(_as_zoo(pair, layers, t[:, 0].numpy()))
    return _measured(zoo, cut, pair, [relative_error(x[i : i + 1], back[i : i + 1]) for i in (0, 1)])


def _tensor(values: np.ndarray) -> Tensor:
    """A copy, since torch cannot hold read-only memory."""
    return torch.from_numpy(np.array(values))


def _layers(values: Float32[Tensor, "n d"], zoo: Zoo, names: Sequence[str]) -> dict[str, np.ndarray]:
    """One unit's flat weights as its layers."""
    shapes = [zoo.layers[name].shape[1:] for name in names]
    bounds = np.cumsum([0, *(rows * cols for rows, cols in shapes)]).tolist()
    flat = values.numpy()
    return {
        name: flat[:, start:stop].reshape(-1, *shape)
        for name, shape, start, stop in zip(names, shapes, bounds, bounds[1:], strict=False)
    }


def _as_zoo(pair: Zoo, layers: Mapping[str, np.ndarray], t: Float64[np.ndarray, " n"]) -> Zoo:
    scale = pair.scale.astype(np.float64)
    names = [f"t={value:.4g}" for value in t]
    return replace(
        pair,
        name=f"interpolation in {pair.name}",
        layers={name: Stack((layers[name],)) for name in pair.layers},
        rank=np.repeat(pair.rank.max(axis=0, keepdims=True), len(t), axis=0),
        scale=((1 - t[:, None]) * scale[:1] + t[:, None] * scale[1:]).astype(np.float32),
        labels=Labels.of(names, ["interpolation"] * len(t), names),
        fingerprint=f"{pair.fingerprint}-interpolation-{len(t)}",
    )


def _cut(zoo: Zoo) -> tuple[Zoo, Float64[Tensor, " n"]]:
    """The zoo with zeros beyond every module's rank, and the norm of the ΔW that stood there."""
    kept, beyond = dict(zoo.layers), torch.zeros(len(zoo), dtype=torch.float64)
    for column, module in enumerate(zoo.modules):
        rank = int(zoo.rank[0, column])
        down, up = np.array(zoo.read(module.down)), np.array(zoo.read(module.up))
        beyond += frobenius_norm(_tensor(down[:, rank:]), _tensor(up[:, :, rank:]), _scale(zoo, column)).square()
        down[:, rank:], up[:, :, rank:] = 0, 0
        kept[module.down], kept[module.up] = Stack((down,)), Stack((up,))
    return replace(zoo, layers=kept), beyond.sqrt()


def _scale(zoo: Zoo, column: int) -> Float64[Tensor, " n"]:
    return _tensor(zoo.scale[:, column].astype(np.float64))


def _inner(one: Zoo, other: Zoo) -> Float64[Tensor, " n"]:
    """⟨ΔW, ΔW'⟩ over all modules, adapter for adapter."""
    total = torch.zeros(len(one), dtype=torch.float64)
    for column, module in enumerate(one.modules):
        first, second = (
            (_tensor(zoo.read(module.down)), _tensor(zoo.read(module.up)), _scale(zoo, column)) for zoo in (one, other)
        )
        total += inner_product(first, second)
    return total


def _measured(zoo: Zoo, cut: Float64[Tensor, " n"], pair: Zoo, errors: Sequence[float]) -> Line:
    squares = _inner(pair, pair).clamp_min(0)
    norms, own = squares.sqrt(), _inner(zoo, zoo).clamp_min(0).sqrt()
    cosines, ratios, ends = [], [], []
    for i, row in ((0, 0), (1, len(zoo) - 1)):
        product = _inner(zoo, pair.rows(np.full(len(zoo), i, np.int64)))
        cosines.append(_over(product, own * norms[i]))
        ratios.append(_over(own, norms[i].expand(len(zoo))))
        # ‖ΔŴ - ΔW‖² by its three inner products.
        distance = (own[row].square() - 2 * product[row] + squares[i]).clamp_min(0).sqrt()
        ends.append(End(pair.labels.adapters[i], errors[i], _over(distance[None], norms[i][None])[0]))
    found = zip(zip(*cosines, strict=True), zip(*ratios, strict=True), _over(cut, own), strict=True)
    swapped = pair.rows(np.array([1, 0], np.int64))
    return Line(
        zoo=zoo,
        ends=(ends[0], ends[1]),
        steps=tuple(
            Step(k / (len(zoo) - 1), (cosine[0], cosine[1]), (norm[0], norm[1]), over)
            for k, (cosine, norm, over) in enumerate(found)
        ),
        cosine=_over(_inner(pair, swapped)[:1], norms[:1] * norms[1:])[0],
        norm=_over(norms[1:], norms[:1])[0],
    )


def _over(above: Float64[Tensor, " n"], below: Float64[Tensor, " n"]) -> list[float]:
    """The quotients; NaN where nothing is below."""
    found: list[float] = torch.where(below > 0, above / below, math.nan).tolist()
    return found
