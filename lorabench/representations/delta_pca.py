"""Principal components of ΔW, which is never formed: what the weights say once the gauge is out of sight."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from lorabench import lowrank
from lorabench.errors import LorabenchError
from lorabench.options import AtLeast, OneOf
from lorabench.progress import track
from lorabench.representations.base import Representation, Unit, chunks, to_device
from lorabench.representations.components import (
    Basis,
    Rows,
    leading,
    noise_floor,
    principal_components,
    scores,
    seeded_normal,
    unit_seed,
)
from lorabench.representations.pca import Components, check_rows, product_device
from lorabench.zoo import Zoo

__all__ = ["DeltaPCA", "Dual", "Sketch"]

_MAX_FLOPS = 2e12  # of one unit's Gram matrix: half a minute on two cores
_STACKED_ROWS = 1024  # adapters times rank whose products with as many others fit a processor's cache


@dataclass(frozen=True)
class Dual:
    """Exact components as weights over training adapters: direction k is Σ_j weights[j, k] · (ΔW_j - mean).

    Attributes:
        modules: the modules whose inner products add up.
        train: the training adapters; their factors stay in the zoo.
        weights: [n_train, k]; every column sums to zero.
        row_mean: mean inner product of every training adapter with all of them, [n_train].
    """

    modules: tuple[str, ...]
    train: Zoo
    weights: Float64[Tensor, "n k"]
    row_mean: Float64[Tensor, " n"]


@dataclass(frozen=True)
class Sketch:
    """Components of ΔW @ Ω in place of ΔW.

    Attributes:
        modules: the modules whose sketches stand behind one another.
        omegas: Ω of every module, orthonormal columns [d_in, s].
        basis: components of the flattened up @ (down @ Ω).
    """

    modules: tuple[str, ...]
    omegas: tuple[Float64[Tensor, "_ _"], ...]
    basis: Basis


@dataclass
class DeltaPCA(Representation):
    """Scores of ΔW = scale · up @ down on the principal components of the training adapters, [N, components].

    Exact from the Gram matrix over the n training adapters, ⟨ΔW_i, ΔW_j⟩ = s_i · s_j · Σ (up_iᵀ·up_j) ∘
    (down_i·down_jᵀ), doubly centred; a new adapter is projected by its inner products with them. Where that
    matrix or its products cost too much, ΔW @ Ω = scale · up @ (down @ Ω) stands in for ΔW, with Ω a seeded
    orthonormal block after one power iteration over the training adapters (Halko, Martinsson and Tropp 2011):
    the part of ΔW that Ω does not see is lost. There are at most min(n_train - 1, d_out · d_in) components;
    what is missing to `components` is zero.

    Args:
        components: length of the feature vector.
        scope: "module" for the components of every module, "all" for those of all modules together.
        memory_gb: what the square matrices of the exact way may take (24 · n_train² bytes); beyond it, Ω.
        sketch: columns of Ω; with d_in or more of them nothing is lost.
        seed: of Ω and of the randomised components of a large sketch.
    """

    learns: ClassVar[bool] = True

    components: Components = 64
    scope: Annotated[str, OneOf(["module", "all"])] = "module"
    memory_gb: Annotated[int | float, AtLeast(0)] = 0.1
    sketch: Annotated[int, AtLeast(1)] = 16
    seed: int = 0

    @property
    def unit(self) -> Unit:
        """A module, or "all"."""
        return "all" if self.scope == "all" else "module"

    @property
    def gauge_invariant(self) -> bool:
        """True: only inner products and images of ΔW are used."""
        return True

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """`pc1`, `pc2` and so on, by falling variance over the training rows."""
        del zoo, unit
        return tuple(f"pc{i + 1}" for i in range(self.components))

    def units(self, zoo: Zoo) -> tuple[str, ...]:
        """Modules of the zoo, or "all" of them.

        Raises:
            LorabenchError: no module has both its layers.
        """
        if not zoo.modules:
            raise LorabenchError(f"delta_pca needs modules with both their layers, and {zoo.name} has none left")
        return super().units(zoo)

    def layers_of(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """Both layers of the module, or of every module; a layer without its partner has no ΔW."""
        return tuple(layer for m in self._modules(zoo, unit) for layer in _pair(zoo, m))

    def fit(self, zoo: Zoo, device: torch.device) -> "DeltaPCA":
        """Learn the components of every unit from these rows.

        Raises:
            LorabenchError: an option is not allowed, or there are no rows.
        """
        check_rows(zoo)
        self.bases_: dict[str, Dual | Sketch] = {}
        for unit in track(self.units(zoo), "principal components of ΔW"):
            modules, place = self._modules(zoo, unit), product_device(device)
            exact = self._fits(zoo, modules)
            self.bases_[unit] = (
                _dual(zoo, modules, self.components, place) if exact else self._sketched(zoo, unit, modules, place)
            )
        return self

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """Scores of every adapter, [N, components].

        Raises:
            LorabenchError: `fit` has not seen this unit, or saw it with other modules.
        """
        found: Dual | Sketch | None = getattr(self, "bases_", {}).get(unit)
        if found is None or found.modules != self._modules(zoo, unit):
            raise LorabenchError(
                f"delta_pca was not fitted on unit {unit!r} with these modules of {zoo.name}; call fit with "
                f"the training rows of the same {len(self._modules(zoo, unit))} modules first"
            )
        place = product_device(device)
        if isinstance(found, Sketch):
            return scores(_sketch_rows(zoo, found.modules, found.omegas, place), found.basis, self.components)
        return _dual_scores(zoo, found, self.components, place)

    def _modules(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        return tuple(m.name for m in zoo.modules) if self.unit == "all" else (unit,)

    def _fits(self, zoo: Zoo, modules: tuple[str, ...]) -> bool:
        flops = 0.0
        for name in modules:
            d_out, rank, d_in = _dims(zoo, name)
            flops += 2.0 * (len(zoo) * rank) ** 2 * (d_in + d_out) / 2
        return 24 * len(zoo) ** 2 <= self.memory_gb * 1e9 and flops <= _MAX_FLOPS

    def _sketched(self, zoo: Zoo, unit: str, modules: tuple[str, ...], device: torch.device) -> Sketch:
        omegas = tuple(_omega(zoo, name, self.sketch, unit_seed(self.seed, name), device) for name in modules)
        rows = _sketch_rows(zoo, modules, omegas, device)
        basis = principal_components(rows, self.components, self.memory_gb * 1e9, unit_seed(self.seed, unit))
        return Sketch(modules, omegas, basis)


def _pair(zoo: Zoo, module: str) -> tuple[str, str]:
    found = zoo.modules[zoo.module_index(module)]
    return found.down, found.up


def _dims(zoo: Zoo, module: str) -> tuple[int, int, int]:
    """(d_out, r, d_in)."""
    down, up = (zoo.layers[layer].shape for layer in _pair(zoo, module))
    return up[1], down[1], down[2]


Factors = tuple[Float64[Tensor, "_ _ d_in"], Float64[Tensor, "_ d_out _"]]


def _factors(zoo: Zoo, module: str, start: int, stop: int, device: torch.device) -> Factors:
    """(down [n, r, d_in], scale · up [n, d_out, r])."""
    down, up = (to_device(zoo.read(layer, start, stop), device).double() for layer in _pair(zoo, module))
    scale = to_device(zoo.scale[start:stop, zoo.module_index(module)], device).double()
    return down, up * scale[:, None, None]


def _ranges(zoo: Zoo, module: str) -> Iterator[tuple[int, int]]:
    step = max(1, _STACKED_ROWS // _dims(zoo, module)[1])
    for start in range(0, len(zoo), step):
        yield start, min(start + step, len(zoo))


def _gram(zoo: Zoo, modules: tuple[str, ...], device: torch.device) -> Float64[Tensor, "n n"]:
    """Inner products of all ΔW, summed over the modules, [n, n]."""
    gram = torch.zeros(len(zoo), len(zoo), dtype=torch.float64, device=device)
    for name in modules:
        ranges = list(_ranges(zoo, name))
        for i, (low, high) in enumerate(ranges):
            left = _factors(zoo, name, low, high, device)
            gram[low:high, low:high] += lowrank.inner_products(left, left)
            for start, stop in ranges[:i]:
                product = lowrank.inner_products(left, _factors(zoo, name, start, stop, device))
                gram[low:high, start:stop] += product
                gram[start:stop, low:high] += product.T
    return gram


def _dual(zoo: Zoo, modules: tuple[str, ...], components: int, device: torch.device) -> Dual:
    gram = _gram(zoo, modules, device)
    row_mean = gram.mean(1)
    floor = noise_floor(float(gram.diagonal().sum()))
    centred = gram - row_mean[:, None] - row_mean[None, :] + row_mean.mean()
    values, vectors = leading(centred, components, floor)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    weights = vectors * torch.where(largest < 0, -1.0, 1.0) / values.sqrt()
    return Dual(modules, zoo, weights - weights.mean(0), row_mean)


def _dual_scores(zoo: Zoo, dual: Dual, components: int, device: torch.device) -> Float32[Tensor, "n f"]:
    """Scores Σ_j (⟨ΔW, ΔW_j⟩ - row_mean_j)·weights_jk, [n, components].

    Double centring has two more means, which are one number for all j: the zero-sum columns cancel them.
    """
    weights = dual.weights.to(device)
    total: Float64[Tensor, "n k"] = -(dual.row_mean.to(device) @ weights).repeat(len(zoo), 1)
    for name in dual.modules:
        for low, high in _ranges(zoo, name):
            left = _factors(zoo, name, low, high, device)
            for start, stop in _ranges(dual.train, name):
                right = _factors(dual.train, name, start, stop, device)
                total[low:high] += lowrank.inner_products(left, right) @ weights[start:stop]
    out = torch.zeros(len(zoo), components)
    out[:, : total.shape[1]] = total.float().cpu()
    return out


def _omega(zoo: Zoo, module: str, columns: int, seed: int, device: torch.device) -> Float64[Tensor, "d_in s"]:
    """Orthonormal Ω [d_in, s] near the leading right directions of all ΔW: orth(Σ_i ΔW_iᵀ·ΔW_i·Ω₀)."""
    d_in = _dims(zoo, module)[2]
    omega = torch.linalg.qr(seeded_normal(d_in, min(columns, d_in), seed, device))[0]
    image = torch.zeros_like(omega)
    for start, stop in chunks(zoo, _pair(zoo, module)):
        down, up = _factors(zoo, module, start, stop, device)
        image += (down.mT @ (up.mT @ up @ (down @ omega))).sum(0)
    found: Float64[Tensor, "d_in s"] = torch.linalg.qr(image)[0]
    return found


def _sketch_rows(
    zoo: Zoo, modules: tuple[str, ...], omegas: tuple[Float64[Tensor, "_ _"], ...], device: torch.device
) -> Rows:
    def read(block: int, start: int, stop: int) -> Float64[Tensor, "n width"]:
        down, up = _factors(zoo, modules[block], start, stop, device)
        return (up @ (down @ omegas[block].to(device))).flatten(1)

    widths = tuple(_dims(zoo, name)[0] * omega.shape[1] for name, omega in zip(modules, omegas, strict=True))
    return Rows(len(zoo), widths, read, device)
