"""Which rank is enough, what does each cost, and what would the advisor have named?"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from lorabench.studies.models import Base
from lorabench.studies.plots import bars
from lorabench.studies.study import Report, Study, mean_of, paired
from lorabench.studies.training import Outcome, Setting, gradient_of

__all__ = ["RankSearch"]


@dataclass
class RankSearch(Study):
    """Accuracy and cost by rank, at one α/r.

    Args:
        ranks: that are tried, rising.
        classes: of the task.
        source: of its texts.
    """

    ranks: Sequence[int] = (4, 8, 16, 32, 64)
    classes: int = 8
    source: str = "docstrings"

    def settings(self, base: Base) -> list[Setting]:
        """Every rank with every seed."""
        del base
        return [setting for rank in self.ranks for setting in self._of(rank)]

    def _of(self, rank: int) -> list[Setting]:
        own = {"source": self.source, "classes": self.classes}
        return [Setting(**self.common(rank=rank, alpha=rank, seed=seed, **own)) for seed in range(self.seeds)]

    def report(self, outcomes: Mapping[Setting, Outcome], base: Base) -> Report:
        """The smallest rank that is not told from the best, beside what was advised."""
        accuracy = {rank: [outcomes[one].accuracy for one in self._of(rank)] for rank in self.ranks}
        best = max(self.ranks, key=lambda rank: statistics.fmean(accuracy[rank]))
        rows = []
        numbers: dict[str, Any] = {}
        for rank in self.ranks:
            own = [outcomes[one] for one in self._of(rank)]
            advised = mean_of([one.advised["mean"] for one in own if one.advised] or [float("nan")])
            seconds = statistics.median(one.seconds for one in own)
            rows.append(
                [str(rank), str(mean_of(accuracy[rank])), str(own[0].parameters), f"{seconds:.1f}", str(advised)]
            )
            numbers[str(rank)] = {"accuracy": accuracy[rank], "seconds": seconds, "advised": vars(advised)}
        says = [f"The best mean accuracy has rank {best} ({statistics.fmean(accuracy[best]):.3f})."]
        enough = [
            rank
            for rank in self.ranks
            if rank == best or (low := paired(accuracy[best], accuracy[rank]).low) is None or low <= 0
        ]
        says.append(f"The smallest rank that {self.seeds} seeds do not tell from it is {min(enough)}.")
        largest = max(self.ranks)
        after = numbers[str(largest)]["advised"]["mean"]
        says.append(
            f"From the spectrum of rank {largest} the advisor names {after:.1f} on average, for 1 % of the energy."
        )
        before = gradient_of(base, self._of(largest)[0], 16)
        ranks = [row.effective_rank for row in before.modules if row.effective_rank is not None]
        says.append(
            f"Before the training the gradient's effective rank is {statistics.median(ranks):.0f} in the median module."
        )
        numbers["before"] = {"gradient_rank": ranks, "agreement": before.agreement}
        return Report(("rank", "accuracy", "parameters", "seconds", "rank advised after"), rows, says, numbers)

    def figure(self, outcomes: Mapping[Setting, Outcome]) -> Figure:
        """Accuracy by rank."""
        groups = {f"rank {rank}": [outcomes[one].accuracy for one in self._of(rank)] for rank in self.ranks}
        return bars(groups, "test accuracy, mean and 95 % interval; marks: seeds")
