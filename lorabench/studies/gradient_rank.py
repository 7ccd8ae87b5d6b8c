"""Does the rank of the gradient at step 0 tell the rank that a task needs?"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from lorabench.pictures import SERIES, tidy
from lorabench.studies.models import Base
from lorabench.studies.study import Report, Study, correlation
from lorabench.studies.training import Outcome, Setting, gradient_of

__all__ = ["GradientRank"]


@dataclass
class GradientRank(Study):
    """The effective rank of the gradient against the rank of the best accuracy, over tasks.

    Args:
        ranks: that are tried on every task.
        tasks: source, number of classes and classes to pass over, twelve at least.
    """

    ranks: Sequence[int] = (2, 4, 8, 16, 32)
    tasks: Sequence[Sequence[str | int]] = (("docstrings", 2, 0),)

    def settings(self, base: Base) -> list[Setting]:
        """Every task with every rank and seed."""
        del base
        return [one for task in self.tasks for rank in self.ranks for one in self._of(task, rank)]

    def _of(self, task: Sequence[str | int], rank: int) -> list[Setting]:
        source, classes, first = task
        common = self.common(rank=rank, alpha=rank)
        plain = Setting(**{**common, "source": source, "classes": classes, "first": first})
        return [replace(plain, seed=seed) for seed in range(self.seeds)]

    def _means(self, task: Sequence[str | int], outcomes: Mapping[Setting, Outcome]) -> dict[int, float]:
        """Rank -> mean accuracy over seeds."""
        return {rank: statistics.fmean(outcomes[one].accuracy for one in self._of(task, rank)) for rank in self.ranks}

    def report(self, outcomes: Mapping[Setting, Outcome], base: Base) -> Report:
        """The correlation over tasks, with its interval."""
        rows, gradients, best_ranks, widths, used = [], [], [], [], []
        for task in self.tasks:
            means = self._means(task, outcomes)
            best = min(rank for rank in self.ranks if means[rank] == max(means.values()))
            found = gradient_of(base, self._of(task, max(self.ranks))[0], 16)
            gradient = statistics.median(row.effective_rank for row in found.modules if row.effective_rank is not None)
            after = [outcomes[one].looks for one in self._of(task, max(self.ranks))]
            used.append(statistics.fmean(list(looks.values())[-1]["effective_rank"] for looks in after))
            gradients.append(gradient)
            best_ranks.append(float(best))
            widths.append(float(task[1]))
            name = " ".join(map(str, task))
            rows.append(
                [
                    name,
                    f"{gradient:.1f}",
                    str(best),
                    f"{means[best]:.3f}",
                    f"{min(means.values()):.3f}",
                    f"{used[-1]:.1f}",
                ]
            )
        pairs = {
            "gradient's rank and best rank": correlation(gradients, best_ranks),
            "gradient's rank and number of classes": correlation(gradients, widths),
            "gradient's rank and effective rank after training": correlation(gradients, used),
        }
        says = [f"Spearman's correlation of {name} over {len(rows)} tasks: {value}." for name, value in pairs.items()]
        numbers = {
            "gradient_rank": gradients, "best_rank": best_ranks, "classes": widths, "used": used,
            "correlations": {name: vars(value) for name, value in pairs.items()},
        }  # fmt: skip
        columns = ("task", "gradient's eff. rank", "best rank", "its accuracy", "worst accuracy", "eff. rank after")
        return Report(columns, rows, says, numbers)

    def figure(self, outcomes: Mapping[Setting, Outcome]) -> Figure:
        """Accuracy by rank, a line for every task."""
        figure = Figure(figsize=(7.0, 3.8), layout="constrained")
        axes = figure.subplots()
        for place, task in enumerate(self.tasks):
            colour, marker = SERIES[place % len(SERIES)]
            means = list(self._means(task, outcomes).values())
            style, name = "-" if place < len(SERIES) else "--", " ".join(map(str, task))
            axes.plot(self.ranks, means, style, color=colour, marker=marker, markersize=4, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(self.ranks), [str(rank) for rank in self.ranks])
        axes.set_xlabel("rank")
        axes.set_ylabel("test accuracy")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        tidy(axes)
        return figure
