"""Does a LoRA of rank 64 on a simple classification use its rank, and what decides how much of it?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from lorabench.studies.models import Base
from lorabench.studies.plots import over_steps
from lorabench.studies.study import Mean, Report, Study, mean_of, paired
from lorabench.studies.training import Outcome, Setting

__all__ = ["RankCollapse"]


@dataclass
class RankCollapse(Study):
    """Effective rank over the steps, each axis moved by itself from a centre.

    Args:
        rank: of the LoRA.
        learning_rates, classes, sizes: of each axis; the first is the centre's. Sizes are training texts; `train` and
            `learning_rate` are not looked at.
    """

    rank: int = 64
    learning_rates: Sequence[float] = (1e-3, 1e-4, 3e-3)
    classes: Sequence[int] = (2, 8)
    sizes: Sequence[int] = (512, 64)

    def settings(self, base: Base) -> list[Setting]:
        """The centre, and one step along each axis."""
        del base
        return [setting for group in self._groups().values() for setting in group]

    def _groups(self) -> dict[str, list[Setting]]:
        centre = {"learning_rate": self.learning_rates[0], "classes": self.classes[0], "train": self.sizes[0]}
        moved = {"centre": centre}
        moved |= {f"learning rate {value:g}": {**centre, "learning_rate": value} for value in self.learning_rates[1:]}
        moved |= {f"{value} classes": {**centre, "classes": value} for value in self.classes[1:]}
        moved |= {f"{value} texts": {**centre, "train": value} for value in self.sizes[1:]}
        return {
            name: [
                Setting(**self.common(rank=self.rank, alpha=self.rank, seed=seed, **own)) for seed in range(self.seeds)
            ]
            for name, own in moved.items()
        }

    def report(self, outcomes: Mapping[Setting, Outcome], base: Base) -> Report:
        """Effective rank at the first and the last look, and what each axis changes."""
        del base
        rows, numbers, last = [], {}, {}
        for name, group in self._groups().items():
            own = [outcomes[setting] for setting in group]
            first, end = ([_rank(one, place) for one in own] for place in (0, -1))
            last[name] = end
            means = {"first": mean_of(first), "last": mean_of(end), "accuracy": mean_of([one.accuracy for one in own])}
            stable = mean_of([list(one.looks.values())[-1]["stable_rank"] for one in own])
            rows.append([name, *(str(means[key]) for key in ("first", "last")), str(stable), str(means["accuracy"])])
            numbers[name] = {key: vars(value) for key, value in {**means, "stable": stable}.items()}
        used = numbers["centre"]["last"]["mean"]
        says = [f"At the end the median module of the centre uses {used:.1f} of rank {self.rank}."]
        says += [_changed(name, paired(values, last["centre"])) for name, values in last.items() if name != "centre"]
        columns = ("setting", "eff. rank, first look", "eff. rank, end", "stable rank, end", "accuracy")
        return Report(columns, rows, says, numbers)

    def figure(self, outcomes: Mapping[Setting, Outcome]) -> Figure:
        """Effective rank over the steps."""
        groups = {name: [outcomes[setting] for setting in group] for name, group in self._groups().items()}
        return over_steps(groups, "effective_rank", f"effective rank of {self.rank}, median module")


def _rank(outcome: Outcome, place: int) -> float:
    return list(outcome.looks.values())[place]["effective_rank"]


def _changed(name: str, difference: Mean) -> str:
    if difference.low is None or difference.high is None:
        return f"{name}: {difference.mean:+.2f} against the centre (no interval)."
    told = "is told from it" if difference.low > 0 or difference.high < 0 else "is not told from it"
    within = f"[{difference.low:+.2f}, {difference.high:+.2f}]"
    return f"{name}: {difference.mean:+.2f} {within} against the centre: it {told}."
