"""Two updates of one module: angle, norms, distance, shared subspaces and signs, each computed once, here."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.comparing.deviation import chunks, distances
from lorabench.lowrank import numerical_rank, thin_svd
from lorabench.machine import map_in_lanes
from lorabench.progress import bar

__all__ = ["ModulePair", "SubspaceOverlap", "module_pairs"]

_ROWS = 64

Row = Sequence[LoraModule | None]
"""One module in every adapter, None where an adapter lacks it."""


@dataclass(frozen=True)
class SubspaceOverlap:
    """How two singular subspaces of dimensions k_a and k_b lie in d dimensions.

    Attributes:
        cosines: of the principal angles, descending; min(k_a, k_b) of them.
        shared: mean of their squares, in [0, 1]: 1 where the smaller subspace lies in the larger.
        by_chance: what `shared` is on average for two random subspaces, max(k_a, k_b) / d.
    """

    cosines: tuple[float, ...]
    shared: float
    by_chance: float


@dataclass(frozen=True)
class ModulePair:
    """Two updates ΔW_a and ΔW_b of one shape.

    Attributes:
        dimensions: of their singular subspaces, how many σ stand out: σ above what float32 can tell from zero
            (`lowrank.numerical_rank`), and above σ₁ · eps of the stored type; 0 where ΔW is zero.
        norms: ‖ΔW_a‖_F and ‖ΔW_b‖_F.
        inner: ⟨ΔW_a, ΔW_b⟩.
        distance: ‖ΔW_a − ΔW_b‖_F, right to 1e-14 of the factors (`deviation.distances`).
        left: overlap of the left singular subspaces, in the output space; None where either ΔW is zero.
        right: overlap of the right ones, in the input space; None where either ΔW is zero.
        sign_conflict: share of the entries where the signs differ, among those where both are not 0, on at most 64
            rows; NaN where there is no such entry. Unrelated updates have one half.
    """

    dimensions: tuple[int, int]
    norms: tuple[float, float]
    inner: float
    distance: float
    left: SubspaceOverlap | None
    right: SubspaceOverlap | None
    sign_conflict: float

    @property
    def trained(self) -> bool:
        """Whether neither ΔW is zero."""
        return all(norm > 0 for norm in self.norms)

    @property
    def cosine(self) -> float | None:
        """⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖·‖ΔW_b‖), in [-1, 1]; None where either ΔW is zero."""
        return max(-1.0, min(1.0, self.inner / self.norms[0] / self.norms[1])) if self.trained else None


def module_pairs(rows: Mapping[str, Row], seed: int = 0) -> dict[str, dict[tuple[int, int], ModulePair]]:
    """Every two updates of every module, by the positions of the adapters that have it.

    Modules of one shape and ranks go together, so that each thin SVD (see `lowrank.thin_svd`) is one of a batch, and is
    made once for all pairs that need it. Principal angles are those of L_aᵀ·L_b and R_a·R_bᵀ (Björck & Golub 1973).

    Args:
        rows: name -> that module in every adapter; those of one name have one shape.
        seed: of the rows that signs are compared on, the same rows for all modules of a height.

    Example:
        >>> a, b = (LoraModule(torch.tensor([[1.0, 0.0]]), torch.tensor([[size]])) for size in (2.0, -1.0))
        >>> pair = module_pairs({"q": (a, b)})["q"][0, 1]
        >>> pair.cosine, pair.distance, pair.right.shared, pair.sign_conflict
        (-1.0, 3.0, 1.0, 1.0)
    """
    groups: dict[tuple[object, ...], list[tuple[str, Row]]] = defaultdict(list)
    for name, row in rows.items():
        held = [module for module in row if module is not None]
        if len(held) > 1:
            groups[(held[0].shape, *(module and module.rank for module in row))].append((name, row))
    batches = [
        batch
        for group in groups.values()
        for batch in chunks(group, sum((sum(module.shape) * module.rank) for module in group[0][1] if module))
    ]
    with bar("Comparing modules", len(batches)) as shown:
        compared = map_in_lanes(partial(_batch, seed=seed), batches, done=shown.advance)
    found = {name: pairs for batch in compared for name, pairs in batch}
    return {name: found.get(name, {}) for name in rows}


def _batch(batch: Sequence[tuple[str, Row]], seed: int) -> list[tuple[str, dict[tuple[int, int], ModulePair]]]:
    owners = [i for i, module in enumerate(batch[0][1]) if module is not None]
    looks = {i: _Look([row[i] for _, row in batch], seed) for i in owners}  # type: ignore[misc]  # no owner has None
    found: dict[str, dict[tuple[int, int], ModulePair]] = {name: {} for name, _ in batch}
    for i, j in combinations(owners, 2):
        for name, pair in zip(found, _pairs(looks[i], looks[j]), strict=True):
            found[name][i, j] = pair
    return list(found.items())


class _Look:
    """One adapter's modules of one shape and rank: singular subspaces, norms, and the signs of some rows."""

    def __init__(self, modules: Sequence[LoraModule], seed: int) -> None:
        down, up = (torch.stack([getattr(module, side) for module in modules]) for side in ("down", "up"))
        scale = torch.tensor([module.scale for module in modules], dtype=torch.float64)
        self.term = (down, up, scale)
        self.left, self.sigma, self.right = thin_svd(down, up, scale)
        self.norms = self.sigma.norm(dim=-1)
        self.dimensions = dimensions(self.sigma, modules).tolist()
        self.signs = _signs(down, up, scale.float(), seed)


def dimensions(sigma: Float64[Tensor, "n k"], modules: Sequence[LoraModule]) -> Int64[Tensor, " n"]:
    """How many values of each ΔW's spectrum are told from rounding: above what float32 can tell from zero
    (`lowrank.numerical_rank`), and above σ₁ · eps of the stored type; 0 where ΔW is zero.

    Args:
        sigma: spectra of modules of one shape, descending.
        modules: whose they are.
    """
    # max(d) · eps of half a type is above 1, and no subspace would be left. The factors are stored, not ΔW:
    # their rounding moves σ by about eps · σ₁, whatever the width.
    as_read = numerical_rank(sigma, modules[0].shape, torch.float32)
    eps = sigma.new_tensor([torch.finfo(module.dtype).eps for module in modules])
    return torch.minimum(as_read, (sigma > sigma[:, :1] * eps[:, None]).sum(-1))


def _signs(
    down: Float32[Tensor, "n r d_in"], up: Float32[Tensor, "n d_out r"], scale: Float32[Tensor, " n"], seed: int
) -> Float32[Tensor, "n rows d_in"]:
    height = up.shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(height, generator=generator)[:_ROWS] if height > _ROWS else torch.arange(height)
    return (scale.sign()[:, None, None] * (up[:, drawn] @ down)).sign_()


def _pairs(a: _Look, b: _Look) -> list[ModulePair]:
    lefts, rights = a.left.mT @ b.left, a.right @ b.right.mT
    inner = (lefts * rights * a.sigma[:, :, None] * b.sigma[:, None, :]).sum((-2, -1)).tolist()
    apart = distances(b.term, [a.term])[0].tolist()
    both = a.signs * b.signs
    against, voting = (both < 0).sum((-2, -1)).tolist(), (both != 0).sum((-2, -1)).tolist()
    dimensions = list(zip(a.dimensions, b.dimensions, strict=True))
    left = _overlaps(lefts, dimensions, a.left.shape[1])
    right = _overlaps(rights, dimensions, a.right.shape[2])
    norms = list(zip(a.norms.tolist(), b.norms.tolist(), strict=True))
    return [
        ModulePair(
            dimensions[n], norms[n], inner[n], apart[n], left[n], right[n],
            against[n] / voting[n] if voting[n] else math.nan,
        )
        for n in range(len(norms))
    ]  # fmt: skip


def _overlaps(
    products: Float64[Tensor, "n k_a k_b"], dimensions: Sequence[tuple[int, int]], width: int
) -> list[SubspaceOverlap | None]:
    """From L_aᵀ·L_b, or R_a·R_bᵀ, of which only the first dimensions count."""
    cut = products.clone()
    for product, (k_a, k_b) in zip(cut, dimensions, strict=True):
        product[k_a:] = 0.0
        product[:, k_b:] = 0.0
    squares = cut.square().sum((-2, -1)).tolist()
    cosines = torch.linalg.svdvals(cut).clamp(0.0, 1.0).tolist()
    return [
        SubspaceOverlap(tuple(angles[: min(ks)]), min(square / min(ks), 1.0), max(ks) / width) if min(ks) else None
        for angles, square, ks in zip(cosines, squares, dimensions, strict=True)
    ]
