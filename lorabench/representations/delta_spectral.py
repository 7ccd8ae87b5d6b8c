"""The spectrum of ΔW, which no gauge can change."""

from dataclasses import dataclass

from lorabench.representations.spectral import Spectral

__all__ = ["DeltaSpectral"]


@dataclass
class DeltaSpectral(Spectral):
    """The 32 features of `Spectral` on ΔW = scale · up @ down, per module, without forming it."""

    on: str = "delta"
