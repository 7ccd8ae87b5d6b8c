"""What does α do at one rank, and the rank at one α: accuracy, the gradient's variance, and how κ moves."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from lorabench.studies.models import Base
from lorabench.studies.plots import bars
from lorabench.studies.study import Report, Study, mean_of, paired
from lorabench.studies.training import Outcome, Setting

__all__ = ["AlphaSensitivity"]


@dataclass
class AlphaSensitivity(Study):
    """Accuracy and stability by α and r.

    Args:
        rank: at which α is varied.
        alphas: that are tried, the first is the one that others are held against.
        ranks: at which `alphas[0]` is tried too.
        classes: of the task.
    """

    rank: int = 16
    alphas: Sequence[int] = (16, 8, 32, 64)
    ranks: Sequence[int] = (4, 64)
    classes: int = 4

    def settings(self, base: Base) -> list[Setting]:
        """Every pair with every seed."""
        del base
        return [setting for group in self._groups().values() for setting in group]

    def _groups(self) -> dict[str, list[Setting]]:
        pairs = [(self.rank, alpha) for alpha in self.alphas] + [(rank, self.alphas[0]) for rank in self.ranks]
        own = {"classes": self.classes}
        return {
            f"r={rank} α={alpha}": [
                Setting(**self.common(rank=rank, alpha=alpha, seed=seed, **own)) for seed in range(self.seeds)
            ]
            for rank, alpha in pairs
        }

    def report(self, outcomes: Mapping[Setting, Outcome], base: Base) -> Report:
        """Every pair against the first."""
        del base
        groups = {name: [outcomes[one] for one in own] for name, own in self._groups().items()}
        first = next(iter(groups))
        rows, says = [], []
        numbers: dict[str, dict[str, Any]] = {}
        for name, own in groups.items():
            values = {
                "accuracy": [one.accuracy for one in own],
                "gradient_variance": [one.gradient_variance or float("nan") for one in own],
                "kappa_B_volatility": [_volatility(one, "kappa_B") for one in own],
                "dominance": [list(one.looks.values())[-1].get("dominance", float("nan")) for one in own],
            }
            diverged = sum(one.diverged for one in own)
            rows.append([name, *(str(mean_of(value)) for value in values.values()), str(diverged)])
            numbers[name] = {**values, "diverged": diverged}
            if name != first:
                difference = paired(values["accuracy"], numbers[first]["accuracy"])
                told = _told(difference.low, difference.high)
                says.append(f"{name}: accuracy {difference.mean:+.3f} against {first}{told}")
        columns = ("setting", "accuracy", "variance of gradient's norm", "volatility of κ(B)", "dominance", "diverged")
        return Report(columns, rows, says, numbers)

    def figure(self, outcomes: Mapping[Setting, Outcome]) -> Figure:
        """Accuracy by pair."""
        groups = {name: [outcomes[one].accuracy for one in own] for name, own in self._groups().items()}
        return bars(groups, "test accuracy, mean and 95 % interval; marks: seeds")


def _volatility(outcome: Outcome, metric: str) -> float:
    """Standard deviation / mean over the second half of the looks."""
    values = [look[metric] for look in outcome.looks.values() if math.isfinite(look.get(metric, math.inf))]
    values = values[len(values) // 2 :]
    return statistics.pstdev(values) / statistics.fmean(values) if len(values) > 1 else float("nan")


def _told(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return " (no interval)."
    told = "told apart" if low > 0 or high < 0 else "not told apart"
    return f" [{low:+.3f}, {high:+.3f}]: {told}."
