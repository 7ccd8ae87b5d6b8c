"""Principal components of ΔW, which is never formed: what the weights say once the gauge is out of sight."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from lorabench import lowrank
from lorabench.errors import LorabenchError
from lorabench.options import AtLeast, OneOf
from lorabench.progress import track
from lorabench.representations.base import Representation, Unit, chunks
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
from lorabench.representations.reading import scaled_factors
from lorabench.zoo import Zoo

__all__ = ["DeltaPCA", "Directions", "Dual", "Sketch"]

_MAX_FLOPS = 2e12  # of one unit's Gram matrix: half a minute on two cores
_MAX_EXPORTED = 2e9  # bytes of directions
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
class Directions:
    """Exact components as they are: the same scores as by `Dual`, without a training adapter at hand.

    Attributes:
        modules: the modules whose inner products add up.
        directions: Σ_j weights[j, k] · ΔW_j of every module, flattened, [k, d_out · d_in].
        offset: what every score is lowered by, row_mean @ weights, [k].
    """

    modules: tuple[str, ...]
    directions: tuple[Float32[Tensor, "k _d"], ...]
    offset: Float64[Tensor, " k"]


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
        self.bases_: dict[str, Directions | Dual | Sketch] = {}
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
        found: Directions | Dual | Sketch | None = getattr(self, "bases_", {}).get(unit)
        if found is None or found.modules != self._modules(zoo, unit):
            raise LorabenchError(
                f"delta_pca was not fitted on unit {unit!r} with these modules of {zoo.name}; call fit with "
                f"the training rows of the same {len(self._modules(zoo, unit))} modules first"
            )
        place = product_device(device)
        if isinstance(found, Sketch):
            return scores(_sketch_rows(zoo, found.modules, found.omegas, place), found.basis, self.components)
        if isinstance(found, Directions):
            return _direct_scores(zoo, found, self.components, place)
        return _dual_scores(zoo, found, self.components, place)

    def arrays(self) -> dict[str, Tensor]:
        """Of every unit its directions, or (`Sketch`) Ω of every module and the components behind it; float32.

        Raises:
            LorabenchError: the directions take more than 2 GB.
        """
        found: dict[str, Tensor] = {}
        for unit, basis in self.bases_.items():
            if isinstance(basis, Sketch):
                omegas = {f"{unit}/omega/{m}": one for m, one in zip(basis.modules, basis.omegas, strict=True)}
                found |= {name: one.float().cpu() for name, one in omegas.items()} | basis.basis.arrays(unit)
                continue
            direct = basis if isinstance(basis, Directions) else self._directions(basis)
            names = [f"{unit}/directions/{m}" for m in direct.modules]
            found |= dict(zip(names, direct.directions, strict=True)) | {f"{unit}/offset": direct.offset}
        return found

    def take_arrays(self, zoo: Zoo, arrays: Mapping[str, Tensor]) -> None:
        """Know again what `arrays` gave."""
        self.bases_ = {}
        for unit in self.units(zoo):
            modules = self._modules(zoo, unit)
            if f"{unit}/offset" in arrays:
                directions = tuple(arrays[f"{unit}/directions/{name}"] for name in modules)
                self.bases_[unit] = Directions(modules, directions, arrays[f"{unit}/offset"])
            else:
                omegas = tuple(arrays[f"{unit}/omega/{name}"].double() for name in modules)
                self.bases_[unit] = Sketch(modules, omegas, Basis.of(unit, arrays))

    def _directions(self, dual: Dual) -> Directions:
        size = 4 * dual.weights.shape[1] * sum(one.d_out * one.d_in for one in map(dual.train.shape_of, dual.modules))
        if size > _MAX_EXPORTED:
            raise LorabenchError(
                f"delta_pca: {dual.weights.shape[1]} directions of {len(dual.modules)} modules are {size / 1e9:.1f} GB "
                f"and {_MAX_EXPORTED / 1e9:g} GB are the most. Run again with representation.memory_gb=0, which looks "
                "at ΔW through a few columns, or with fewer representation.components"
            )
        device = dual.weights.device
        parts = tuple(_direction(dual, name, device).float().cpu() for name in dual.modules)
        return Directions(dual.modules, parts, (dual.row_mean @ dual.weights).cpu())

    def _modules(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        return tuple(m.name for m in zoo.modules) if self.unit == "all" else (unit,)

    def _fits(self, zoo: Zoo, modules: tuple[str, ...]) -> bool:
        flops = 0.0
        for name in modules:
            rank, d_in, d_out = zoo.shape_of(name)
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


def _ranges(zoo: Zoo, module: str) -> Iterator[tuple[int, int]]:
    step = max(1, _STACKED_ROWS // zoo.shape_of(module).rank)
    for start in range(0, len(zoo), step):
        yield start, min(start + step, len(zoo))


def _gram(zoo: Zoo, modules: tuple[str, ...], device: torch.device) -> Float64[Tensor, "n n"]:
    """Inner products of all ΔW, summed over the modules, [n, n]."""
    gram = torch.zeros(len(zoo), len(zoo), dtype=torch.float64, device=device)
    for name in modules:
        ranges = list(_ranges(zoo, name))
        for i, (low, high) in enumerate(ranges):
            left = scaled_factors(zoo, name, device, low, high)
            gram[low:high, low:high] += lowrank.inner_products(left, left)
            for start, stop in ranges[:i]:
                product = lowrank.inner_products(left, scaled_factors(zoo, name, device, start, stop))
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
            left = scaled_factors(zoo, name, device, low, high)
            for start, stop in _ranges(dual.train, name):
                right = scaled_factors(dual.train, name, device, start, stop)
                total[low:high] += lowrank.inner_products(left, right) @ weights[start:stop]
    out = torch.zeros(len(zoo), components)
    out[:, : total.shape[1]] = total.float().cpu()
    return out


def _direction(dual: Dual, module: str, device: torch.device) -> Float64[Tensor, "k d"]:
    """Σ_j weights[j, k] · ΔW_j of one module, flattened."""
    _, d_in, d_out = dual.train.shape_of(module)
    total = dual.weights.new_zeros(dual.weights.shape[1], d_out * d_in)
    for start, stop in _dense_ranges(dual.train, module):
        down, up = scaled_factors(dual.train, module, device, start, stop)
        total += dual.weights[start:stop].T @ (up @ down).flatten(1)
    return total


def _direct_scores(zoo: Zoo, direct: Directions, components: int, device: torch.device) -> Float32[Tensor, "n f"]:
    total = -direct.offset.to(device).repeat(len(zoo), 1)
    for name, directions in zip(direct.modules, direct.directions, strict=True):
        wide = directions.to(device).double()
        for start, stop in _dense_ranges(zoo, name):
            down, up = scaled_factors(zoo, name, device, start, stop)
            total[start:stop] += (up @ down).flatten(1) @ wide.T
    out = torch.zeros(len(zoo), components)
    out[:, : total.shape[1]] = total.float().cpu()
    return out


def _dense_ranges(zoo: Zoo, module: str) -> Iterator[tuple[int, int]]:
    """Ranges of adapters whose dense ΔW of one module take about 64 MiB in float64."""
    _, d_in, d_out = zoo.shape_of(module)
    step = max(1, 2**23 // (d_out * d_in))
    for start in range(0, len(zoo), step):
        yield start, min(start + step, len(zoo))


def _omega(zoo: Zoo, module: str, columns: int, seed: int, device: torch.device) -> Float64[Tensor, "d_in s"]:
    """Orthonormal Ω [d_in, s] near the leading right directions of all ΔW: orth(Σ_i ΔW_iᵀ·ΔW_i·Ω₀)."""
    d_in = zoo.shape_of(module).d_in
    omega = torch.linalg.qr(seeded_normal(d_in, min(columns, d_in), seed, device))[0]
    image = torch.zeros_like(omega)
    for start, stop in chunks(zoo, _pair(zoo, module)):
        down, up = scaled_factors(zoo, module, device, start, stop)
        image += (down.mT @ (up.mT @ up @ (down @ omega))).sum(0)
    found: Float64[Tensor, "d_in s"] = torch.linalg.qr(image)[0]
    return found


def _sketch_rows(
    zoo: Zoo, modules: tuple[str, ...], omegas: tuple[Float64[Tensor, "_ _"], ...], device: torch.device
) -> Rows:
    def read(block: int, start: int, stop: int) -> Float64[Tensor, "n width"]:
        down, up = scaled_factors(zoo, modules[block], device, start, stop)
        return (up @ (down @ omegas[block].to(device))).flatten(1)

    widths = tuple(zoo.shape_of(name).d_out * omega.shape[1] for name, omega in zip(modules, omegas, strict=True))
    return Rows(len(zoo), widths, read, device)
