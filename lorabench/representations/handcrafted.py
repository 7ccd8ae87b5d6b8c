"""Hand-crafted representations: pure functions of one factor, or of ΔW, of every adapter."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from lorabench.machine import recycle_freed_blocks
from lorabench.representations.base import On, Representation, Unit, chunks, to_device
from lorabench.representations.matrices import DeltaMatrices, FactorMatrices, Matrices
from lorabench.zoo import Zoo

__all__ = ["LARGEST_RATIO", "HandCrafted", "in_batches", "to_float32"]

LARGEST_RATIO = 1.0 / torch.finfo(torch.float32).eps
"""What unbounded ratios are cut to: float32 weights cannot tell a larger one from an infinite one."""

_BATCH_BYTES = {"cpu": 2 * 2**20, "gpu": 256 * 2**20}
"""Entries of one batch, as float32: what stays near a core's cache (measured), or what keeps a GPU busy."""


@dataclass
class HandCrafted(Representation):
    """Base of representations that compute `compute(matrices)` on every layer or every module.

    Args:
        on: `factors`: each layer by itself, cut to its adapter's true rank; `delta`: ΔW = scale · up @ down
            of each module, which is gauge-invariant.
    """

    on: On = "factors"

    @property
    def unit(self) -> Unit:
        """A layer, or a module on delta."""
        return "module" if self.on == "delta" else "layer"

    @property
    def gauge_invariant(self) -> bool:
        """True on delta: nothing else than ΔW is looked at."""
        return self.on == "delta"

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the f features."""

    @property
    def reads_entries(self) -> bool:
        """Whether `compute` looks at entries, so that a ΔW must be formed, or at singular values alone."""
        return True

    @abstractmethod
    def compute(self, matrices: Matrices) -> Float64[Tensor, "n f"]:
        """Features of n matrices, [n, f]; finite for finite entries."""

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """Names of the f features, the same for every unit."""
        del zoo, unit
        return self.names

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """Features of one unit of every adapter, [N, f], on the CPU.

        Adapters pass in batches of one rank, so that padding is never taken for weights; a batch is what fits
        the cache of a core, or a GPU, and one adapter at least.
        """
        out = torch.empty(len(zoo), len(self.names))
        layers = self.layers_of(zoo, unit)
        for rows, factors in in_batches(zoo, layers, self._bytes(zoo, unit), device):
            if self.unit == "layer":
                matrices: Matrices = FactorMatrices(factors[0])
            else:
                scale = torch.from_numpy(zoo.scale[rows, zoo.module_index(unit)]).to(device)
                matrices = DeltaMatrices(factors[0], factors[1], scale)
            out[torch.from_numpy(rows)] = to_float32(self.compute(matrices))
        return out

    def _bytes(self, zoo: Zoo, unit: str) -> int:
        """Float32 bytes of what `compute` holds of one adapter."""
        shapes = [zoo.layers[layer].shape for layer in self.layers_of(zoo, unit)]
        if self.unit == "module" and self.reads_entries:
            (_, _, d_in), (_, d_out, _) = shapes
            return 4 * d_out * d_in
        return 4 * sum(rows * cols for _, rows, cols in shapes)


def to_float32(features: Float[Tensor, "n f"]) -> Float32[Tensor, "n f"]:
    """The features as float32 on the CPU; what float32 cannot hold becomes its largest value."""
    limit = torch.finfo(torch.float32).max
    return features.clamp(-limit, limit).float().cpu()


def in_batches(
    zoo: Zoo, layers: tuple[str, ...], bytes_each: int, device: torch.device
) -> Iterator[tuple[Int64[np.ndarray, " n"], list[Float32[Tensor, "n _ _"]]]]:
    """Walk over a zoo in batches of adapters whose `layers` have one true rank, cut to it.

    Args:
        zoo: the adapters.
        layers: one layer, or the down and up of one module.
        bytes_each: what one adapter takes of the memory of a batch.
        device: where the factors are put.

    Yields:
        (rows [n] of the zoo, [one tensor [n, rows, cols] a layer]).
    """
    recycle_freed_blocks()
    budget = _BATCH_BYTES["cpu" if device.type == "cpu" else "gpu"]
    size = max(1, budget // max(bytes_each, 1))
    ranks = zoo.layer_rank(layers[0])
    for start, stop in chunks(zoo, layers):
        values = [zoo.read(layer, start, stop) for layer in layers]
        for rank in np.unique(ranks[start:stop]):
            same = np.flatnonzero(ranks[start:stop] == rank)
            for low in range(0, len(same), size):
                rows = same[low : low + size]
                # A slice reads the memory map once; an index array would copy it first.
                picked = slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows
                cut = [_cut(zoo, layer, part[picked], int(rank)) for layer, part in zip(layers, values, strict=True)]
                yield rows + start, [to_device(part, device) for part in cut]


def _cut(zoo: Zoo, layer: str, values: Float[np.ndarray, "n rows cols"], rank: int) -> Float[np.ndarray, "n _ _"]:
    """A layer without its padding: down to its first `rank` rows, up to its first `rank` columns."""
    # An adapter of rank 0 lacks the module: it keeps one row of zeros, whose features are those of no change.
    rank = max(rank, 1)
    for module in zoo.modules:
        if layer == module.down:
            return values[:, :rank]
        if layer == module.up:
            return values[:, :, :rank]
    return values
