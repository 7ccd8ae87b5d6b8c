"""The two-dimensional spectrum of frequencies."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex64, Float32, Float64
from torch import Tensor

from lorabench.representations.handcrafted import HandCrafted
from lorabench.representations.matrices import Matrices, ratio

__all__ = ["Frequency"]

_TOP = 10


@dataclass
class Frequency(HandCrafted):
    """Top-10 magnitudes of the 2-D discrete Fourier transform and their summary: 14 features.

    Over all N = rows · cols coefficients (np.fft.fft2, no normalisation): the 10 largest magnitudes,
    descending and padded with zeros where N < 10; mean, std (population) and max of the magnitudes; share of
    the energy Σ|X|² in the top 10, 0 for an all-zero matrix.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The 14 names."""
        return (*(f"magnitude_{i}" for i in range(1, _TOP + 1)), "mean", "std", "max", "top_energy")

    def compute(self, matrices: Matrices) -> Float64[Tensor, "n 14"]:
        """The 14 features, [n, 14]."""
        # The transform is float32: a large mean would drown the rest in rounding, and 1e-20 would underflow.
        # So it sees centred entries relative to their spread; the mean is coefficient 0 alone, and put back.
        count = matrices.flat.shape[1]
        mean = matrices.mean / matrices.spread
        magnitudes = _magnitudes(torch.fft.rfft2(matrices.relative.view(matrices.values.shape)))
        magnitudes[:, 0, 0] = (count * mean.abs()).float()
        top, average, std = _summary(magnitudes, matrices.values.shape[-1])
        # Parseval: the energy of all coefficients is N times that of the entries.
        whole = count**2 * ((matrices.std / matrices.spread).square() + mean.square())
        share = ratio(top.square().sum(-1), whole).clamp(max=1.0).unsqueeze(-1)
        scaled = torch.cat([top, average.unsqueeze(-1), std.unsqueeze(-1), top[:, :1]], dim=1)
        return torch.cat([scaled * matrices.spread.unsqueeze(-1), share], dim=1)


def _magnitudes(spectrum: Complex64[Tensor, "n rows half"]) -> Float32[Tensor, "n rows half"]:
    if spectrum.device.type == "cpu":
        # numpy's is ten times faster than torch's on a CPU.
        return torch.from_numpy(np.abs(spectrum.numpy()))
    return spectrum.abs()


def _summary(
    magnitudes: Float32[Tensor, "n rows half"], cols: int
) -> tuple[Float64[Tensor, "n top"], Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Top-10, mean and std over the whole plane, of which a real transform computes a half.

    The spectrum of real input is symmetric: every column but the first and, for even `cols`, the last stands
    for two of the plane.
    """
    end = (cols + 1) // 2
    twice = magnitudes[:, :, 1:end].flatten(1)
    once = torch.cat([magnitudes[:, :, :1], magnitudes[:, :, end:]], dim=2).flatten(1)
    largest = twice.topk(min(_TOP // 2, twice.shape[1])).values
    candidates = torch.cat([largest, largest, once.topk(min(_TOP, once.shape[1])).values], dim=1)
    top = candidates.topk(min(_TOP, candidates.shape[1])).values.double()
    count = 2 * twice.shape[1] + once.shape[1]
    mean = (2 * twice.sum(-1) + once.sum(-1)) / count
    offset = mean.unsqueeze(-1)
    square = 2 * (twice - offset).square().sum(-1) + (once - offset).square().sum(-1)
    return (
        torch.nn.functional.pad(top, (0, _TOP - top.shape[1])),
        mean.double(),
        (square / count).sqrt().double(),
    )
