"""Learning-rate plateau, early stop and best epoch of many members at once."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["Schedule"]

_PLATEAU_THRESHOLD, _PLATEAU_EPS = 1e-4, 1e-8  # those of torch's ReduceLROnPlateau


@dataclass
class Schedule:
    """Plateau, early stopping and best epoch of every member, as torch and Lightning define them.

    Attributes:
        rates: learning rates; the plateau lowers them.
        factor: by which.
        plateau_patience: after more than this many epochs that are no better.
        patience: so many epochs that are no better end the training.
        on: what of the validation rows an epoch is judged by: the loss, where lower is better, or the accuracy, where
            higher is.
    """

    rates: Float[Tensor, " members"]
    factor: float
    plateau_patience: int
    patience: int
    on: Literal["loss", "accuracy"] = "loss"
    best: Float[Tensor, " members"] = field(init=False)
    plateau_best: Float[Tensor, " members"] = field(init=False)
    bad: Int64[Tensor, " members"] = field(init=False)
    waited: Int64[Tensor, " members"] = field(init=False)

    def __post_init__(self) -> None:
        infinite = torch.full_like(self.rates, float("inf" if self.on == "loss" else "-inf"))
        self.best, self.plateau_best = infinite, infinite.clone()
        self.bad = torch.zeros_like(self.rates, dtype=torch.int64)
        self.waited = self.bad.clone()

    def update(self, judged: Float[Tensor, " members"]) -> tuple[Bool[Tensor, " members"], Bool[Tensor, " members"]]:
        """Take in one epoch's validation losses (or accuracies); which members improved, and which are to stop."""
        if self.on == "loss":
            improved, clearly = judged < self.best, judged < self.plateau_best * (1 - _PLATEAU_THRESHOLD)
        else:
            improved, clearly = judged > self.best, judged > self.plateau_best * (1 + _PLATEAU_THRESHOLD)
        self.best = torch.where(improved, judged, self.best)
        self.waited = torch.where(improved, 0, self.waited + 1)
        self.plateau_best = torch.where(clearly, judged, self.plateau_best)
        self.bad = torch.where(clearly, 0, self.bad + 1)
        due = self.bad > self.plateau_patience
        reduced = self.rates * self.factor
        self.rates = torch.where(due & (self.rates - reduced > _PLATEAU_EPS), reduced, self.rates)
        self.bad = torch.where(due, 0, self.bad)
        return improved, (self.waited >= self.patience) | ~torch.isfinite(judged)

    def keep(self, members: Int64[Tensor, " kept"]) -> None:
        """Drop all members but these."""
        for name in ("rates", "best", "plateau_best", "bad", "waited"):
            setattr(self, name, getattr(self, name)[members])
