"""Principal components of rows read in pieces: exact while a square matrix fits, randomised beyond."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

__all__ = [
    "Basis",
    "Mode",
    "Rows",
    "choose_mode",
    "leading",
    "noise_floor",
    "principal_components",
    "scores",
    "seeded_normal",
    "unit_seed",
]

Mode = Literal["covariance", "gram", "sketch"]

_CHUNK_BYTES = 64 * 2**20
_SQUARES = 3  # the matrix, its eigenvectors and the solver's workspace are held at once
_POWER_ITERATIONS = 6
_SETTLED = 1e-4  # relative growth of the explained variance below which the iteration stops
_OVERSAMPLING = 16


@dataclass(frozen=True)
class Rows:
    """n rows of d columns that need not fit in memory; the columns come in blocks (layers, for instance).

    Attributes:
        count: n.
        widths: columns of every block; d is their sum.
        read: (block, start, stop) -> rows start to stop of one block, [stop - start, width], on `device`.
        device: where the products are computed.
    """

    count: int
    widths: tuple[int, ...]
    read: Callable[[int, int, int], Tensor]
    device: torch.device

    @property
    def width(self) -> int:
        """d, the number of columns of all blocks."""
        return sum(self.widths)

    def ranges(self, width: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows of which `width` columns in float64 take about 64 MiB."""
        step = max(1, _CHUNK_BYTES // (8 * max(width, 1)))
        for start in range(0, self.count, step):
            yield start, min(start + step, self.count)

    def blocks(self) -> Iterator[tuple[int, slice]]:
        """Every block with its columns among the d."""
        stop = 0
        for block, width in enumerate(self.widths):
            stop += width
            yield block, slice(stop - width, stop)


@dataclass(frozen=True)
class Basis:
    """k principal directions, in float64 on the device that found them.

    Attributes:
        mean: mean of the rows they were learned from, [d].
        directions: orthonormal rows by falling variance, [k, d]; the entry of largest size is positive.
        variance: variance along them, Σ scores² / (n - 1), [k].
    """

    mean: Float64[Tensor, " d"]
    directions: Float64[Tensor, "k d"]
    variance: Float64[Tensor, " k"]

    def arrays(self, unit: str) -> dict[str, Tensor]:
        """Its numbers as float32 on the CPU, by names that begin with `unit`."""
        return {f"{unit}/{name}": values.float().cpu() for name, values in vars(self).items()}

    @classmethod
    def of(cls, unit: str, arrays: Mapping[str, Tensor]) -> "Basis":
        """From what `arrays` gave."""
        return cls(*(arrays[f"{unit}/{name}"].double() for name in ("mean", "directions", "variance")))


def choose_mode(count: int, width: int, memory: int | float) -> Mode:
    """How to find the components of `count` × `width` numbers within `memory` bytes of square matrices."""
    if 8 * _SQUARES * min(count, width) ** 2 > memory:
        return "sketch"
    return "covariance" if width <= count else "gram"


def principal_components(
    rows: Rows, components: int, memory: int | float, seed: int, mode: Mode | None = None
) -> Basis:
    """The leading principal components of `rows`: eigenvectors of C = (X - m)ᵀ(X - m) in descending order.

    Three ways, all in float64 and in passes over pieces of the rows: `covariance` decomposes C [d, d], `gram`
    decomposes (X - m)(X - m)ᵀ [n, n], and `sketch` iterates C on a seeded random block until the variance that it
    explains settles (Halko, Martinsson and Tropp 2011), which is close and not exact. Directions along which the
    rows differ by no more than float32 rounding are left out.

    Args:
        rows: X [n, d].
        components: how many are wanted; there are at most min(n - 1, d).
        memory: bytes that the square matrices of the exact ways may take.
        seed: of the random block.
        mode: one way instead of the one that `memory` chooses.
    """
    find = {"covariance": _by_covariance, "gram": _by_gram, "sketch": _by_sketch}
    mean, energy = _moments(rows)
    chosen = mode or choose_mode(rows.count, rows.width, memory)
    values, directions = find[chosen](rows, mean, min(components, rows.count, rows.width), seed)
    kept = values > noise_floor(energy)
    values, directions = values[kept], directions[kept]
    return Basis(mean, directions * _signs(directions), values / max(rows.count - 1, 1))


def scores(rows: Rows, basis: Basis, components: int) -> Float32[Tensor, "n components"]:
    """Coordinates (x - m)·v along the directions, [n, components] on the CPU; zero beyond the k there are."""
    out = torch.zeros(rows.count, components)
    mean, directions = basis.mean.to(rows.device), basis.directions.to(rows.device)
    for start, stop in rows.ranges(rows.width):
        parts = [_centred(rows, mean, b, cols, start, stop) @ directions[:, cols].T for b, cols in rows.blocks()]
        if parts:
            out[start:stop, : len(directions)] = torch.stack(parts).sum(0).float().cpu()
    return out


def leading(
    matrix: Float64[Tensor, "n n"], components: int, floor: float = 0.0
) -> tuple[Float64[Tensor, " k"], Float64[Tensor, "n k"]]:
    """The largest eigenvalues above `floor` of a symmetric matrix, descending, and their eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0)[:components], vectors.flip(1)[:, :components]
    kept = values > floor
    return values[kept], vectors[:, kept]


def noise_floor(energy: float) -> float:
    """Σ scores² that float32 rounding of numbers with Σ x² = `energy` can make along one direction."""
    return 4 * float(torch.finfo(torch.float32).eps) ** 2 * energy


def seeded_normal(rows: int, cols: int, seed: int, device: torch.device) -> Float64[Tensor, "rows cols"]:
    """Standard normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator, dtype=torch.float64).to(device)


def unit_seed(seed: int, unit: str) -> int:
    """A seed of its own for every unit, whichever other units are there."""
    # torch's generator on the CPU looks at 32 bits of a seed, so both have to be in them.
    return zlib.crc32(f"{seed}/{unit}".encode())


def _centred(
    rows: Rows, mean: Float64[Tensor, " d"], block: int, columns: slice, start: int, stop: int
) -> Float64[Tensor, "n width"]:
    return rows.read(block, start, stop).double() - mean[columns]


def _moments(rows: Rows) -> tuple[Float64[Tensor, " d"], float]:
    """Mean of the rows [d] and Σ x² over all their numbers."""
    mean = torch.zeros(rows.width, dtype=torch.float64, device=rows.device)
    energy = 0.0
    for block, columns in rows.blocks():
        for start, stop in rows.ranges(rows.widths[block]):
            values = rows.read(block, start, stop).double()
            mean[columns] += values.sum(0) / rows.count
            energy += float(values.square().sum())
    return mean, energy


Found = tuple[Float64[Tensor, " k"], Float64[Tensor, "k d"]]


def _by_covariance(rows: Rows, mean: Float64[Tensor, " d"], components: int, seed: int) -> Found:
    del seed
    covariance = torch.zeros(rows.width, rows.width, dtype=torch.float64, device=rows.device)
    for start, stop in rows.ranges(rows.width):
        x = torch.cat([_centred(rows, mean, b, cols, start, stop) for b, cols in rows.blocks()], dim=1)
        covariance += x.T @ x
    values, vectors = leading(covariance, components)
    return values, vectors.T


def _by_gram(rows: Rows, mean: Float64[Tensor, " d"], components: int, seed: int) -> Found:
    del seed
    gram = torch.zeros(rows.count, rows.count, dtype=torch.float64, device=rows.device)
    for block, columns in rows.blocks():
        ranges = list(rows.ranges(rows.widths[block]))
        for i, (low, high) in enumerate(ranges):
            left = _centred(rows, mean, block, columns, low, high)
            gram[low:high, low:high] += left @ left.T
            for start, stop in ranges[:i]:
                product = left @ _centred(rows, mean, block, columns, start, stop).T
                gram[low:high, start:stop] += product
                gram[start:stop, low:high] += product.T
    values, vectors = leading(gram, components, floor=_tiny(gram))
    weights = vectors / values.sqrt()
    directions = torch.zeros(len(values), rows.width, dtype=torch.float64, device=rows.device)
    for block, columns in rows.blocks():
        for start, stop in rows.ranges(rows.widths[block]):
            directions[:, columns] += weights[start:stop].T @ _centred(rows, mean, block, columns, start, stop)
    return values, directions


def _by_sketch(rows: Rows, mean: Float64[Tensor, " d"], components: int, seed: int) -> Found:
    """Orthogonal iteration with C on a random block, then C's eigenvectors within what it spans (Ritz)."""
    width = min(rows.width, components + max(_OVERSAMPLING, components // 2))
    block = torch.linalg.qr(seeded_normal(rows.width, width, seed, rows.device))[0]
    found = 0.0
    for _ in range(_POWER_ITERATIONS + 1):
        product, inner = _times_covariance(rows, mean, block)
        values, vectors = leading(inner, components)
        directions = (block @ vectors).T
        if values.sum() <= found * (1 + _SETTLED):
            break
        found = float(values.sum())
        block = torch.linalg.qr(product)[0]
    return values, directions


def _times_covariance(
    rows: Rows, mean: Float64[Tensor, " d"], block: Float64[Tensor, "d k"]
) -> tuple[Float64[Tensor, "d k"], Float64[Tensor, "k k"]]:
    """C·V [d, k] and VᵀCV [k, k] in one pass over the rows."""
    product, inner = torch.zeros_like(block), block.new_zeros(block.shape[1], block.shape[1])
    for start, stop in rows.ranges(rows.width):
        parts = [(cols, _centred(rows, mean, b, cols, start, stop)) for b, cols in rows.blocks()]
        image = torch.stack([x @ block[cols] for cols, x in parts]).sum(0)
        inner += image.T @ image
        for cols, x in parts:
            product[cols] += x.T @ image
    return product, inner


def _tiny(gram: Float64[Tensor, "n n"]) -> float:
    # Below this an eigenvalue is rounding of the decomposition, and its root must not be divided by.
    return float(torch.finfo(torch.float64).eps * gram.diagonal().sum())


def _signs(directions: Float64[Tensor, "k d"]) -> Float64[Tensor, "k 1"]:
    largest = directions.abs().argmax(1, keepdim=True)
    return torch.where(directions.gather(1, largest) < 0, -1.0, 1.0).double()
