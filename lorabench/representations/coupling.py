"""How the two factors of a module go together."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from torch.nn import functional as F

from lorabench import lowrank
from lorabench.options import OneOf
from lorabench.representations.base import Representation, Unit
from lorabench.representations.handcrafted import in_batches, to_float32
from lorabench.representations.matrices import ratio
from lorabench.zoo import Zoo

__all__ = ["Coupling", "coupling"]


@dataclass
class Coupling(Representation):
    """Correlation and cosine of the factors, norm of ΔW, correlation of their spectra: 4 features a module.

    See `coupling` for the definitions. All but the norm change with the gauge.

    Args:
        lengths: what is done with flattened factors of two lengths: `cut` to the shorter's, or `pad` with zeros to the
            longer's.
    """

    lengths: Annotated[str, OneOf(["cut", "pad"])] = "cut"

    @property
    def unit(self) -> Unit:
        """A module: both factors are needed."""
        return "module"

    @property
    def gauge_invariant(self) -> bool:
        """No: only one of the four is."""
        return False

    @property
    def names(self) -> tuple[str, ...]:
        """The 4 names."""
        return ("correlation", "cosine", "frobenius", "spectrum_correlation")

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """The 4 names, of any module."""
        del zoo, unit
        return self.names

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n 4"]:
        """The 4 features of one module of every adapter, [N, 4], on the CPU."""
        down, up = self.layers_of(zoo, unit)
        shapes = (zoo.layers[down].shape, zoo.layers[up].shape)
        size = 4 * sum(rows * cols for _, rows, cols in shapes)
        scale = torch.from_numpy(zoo.scale[:, zoo.module_index(unit)])
        out = torch.empty(len(zoo), len(self.names))
        for rows, (down_values, up_values) in in_batches(zoo, (down, up), size, device):
            out[rows] = to_float32(coupling(down_values, up_values, scale[rows].to(device), self.lengths))
        return out


def coupling(
    down: Float32[Tensor, "n r d_in"],
    up: Float32[Tensor, "n d_out r"],
    scale: Float32[Tensor, " n"],
    lengths: str = "cut",
) -> Float64[Tensor, "n 4"]:
    """The coupling of the factors of n adapters, [n, 4].

    - Pearson correlation and cosine of both factors, each flattened row by row and cut to the shorter's
      length, or padded with zeros to the longer's where `lengths` is "pad";
    - ‖ΔW‖_F with ΔW = scale · up @ down;
    - Pearson correlation of the factors' singular values over their common number of values. At rank 1 there
      is one value, of which no correlation exists: it is 0.0 there.

    A correlation with a constant vector and a cosine with an all-zero one are 0.0 too.
    """
    a, b = down.double().flatten(1), up.double().flatten(1)
    length = (min if lengths == "cut" else max)(a.shape[1], b.shape[1])
    a, b = (F.pad(one[:, :length], (0, max(0, length - one.shape[1]))) for one in (a, b))
    sigma_a, sigma_b = lowrank.matrix_singular_values(down), lowrank.matrix_singular_values(up)
    values = min(sigma_a.shape[1], sigma_b.shape[1])
    columns = [
        # What is left of a constant float32 vector after centring in float64 is below 1e-12 of it; singular
        # values of an orthogonal factor differ by the rounding of its float32 entries.
        _correlation(a, b, 1e-12),
        _cosine(a, b),
        lowrank.frobenius_norm(down, up, scale),
        _correlation(sigma_a[:, :values], sigma_b[:, :values], torch.finfo(torch.float32).eps),
    ]
    return torch.stack(columns, dim=1)


def _cosine(a: Float64[Tensor, "n d"], b: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    return ratio((a * b).sum(-1), a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt())


def _correlation(a: Float64[Tensor, "n d"], b: Float64[Tensor, "n d"], constant: float) -> Float64[Tensor, " n"]:
    """Pearson's correlation; 0 where the spread of either vector is below `constant` times its norm."""
    centred_a, centred_b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    varies_a = centred_a.norm(dim=-1) > constant * a.norm(dim=-1)
    varies_b = centred_b.norm(dim=-1) > constant * b.norm(dim=-1)
    return torch.where(varies_a & varies_b, _cosine(centred_a, centred_b), 0.0)
