"""Modules of one shape in several adapters, side by side: what a method on factors gets, and what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.comparing.deviation import distances, stacked

__all__ = ["Pairs", "Terms"]

_Stack = tuple[Float64[Tensor, "n _ d_in"], Float64[Tensor, "n d_out _"], Float64[Tensor, " n"]]


@dataclass(frozen=True)
class Pairs:
    """Merged factors of n modules.

    Attributes:
        down: [n, k, d_in].
        up: [n, d_out, k].
        predicted: [n], ‖up @ down − Σ terms‖_F as theory has it.
    """

    down: Float64[Tensor, "n k d_in"]
    up: Float64[Tensor, "n d_out k"]
    predicted: Float64[Tensor, " n"]


@dataclass(frozen=True)
class Terms:
    """Σ_i w_i · scale_i · up_i @ down_i of n modules, in float64.

    Attributes:
        each: (down [n, r_i, d_in], up [n, d_out, r_i], w_i · scale_i [n]) of every adapter that has the modules.
    """

    each: tuple[_Stack, ...]

    @classmethod
    def of(cls, modules: Sequence[Sequence[LoraModule]], weights: Sequence[float]) -> "Terms":
        """From modules of one shape: those of each adapter, as many in each, and the adapters' weights."""
        return cls(
            tuple(
                (
                    torch.stack([module.down for module in own]).double(),
                    torch.stack([module.up for module in own]).double(),
                    torch.tensor([weight * module.scale for module in own], dtype=torch.float64),
                )
                for own, weight in zip(modules, weights, strict=True)
            )
        )

    @property
    def ranks(self) -> tuple[int, ...]:
        """r_i of each adapter."""
        return tuple(down.shape[-2] for down, _, _ in self.each)

    def stacked(self) -> tuple[Float64[Tensor, "n sum_r d_in"], Float64[Tensor, "n d_out sum_r"]]:
        """One pair of the whole sum: downs side by side, and ups times their factors."""
        return stacked(self.each)

    def distances(
        self, down: Float[Tensor, "n k d_in"], up: Float[Tensor, "n d_out k"]
    ) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
        """‖up @ down − Σ terms‖_F and ‖Σ terms‖_F; see `deviation.distance`."""
        return distances((down, up, 1.0), self.each)

    def norms(self) -> Float64[Tensor, " n"]:
        """‖Σ terms‖_F."""
        down, up = self.stacked()
        return self.distances(down[:, :1] * 0.0, up[..., :1])[1]
