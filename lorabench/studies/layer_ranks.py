"""Where is a fixed budget of parameters best spent: attention, feed-forward, everywhere, or where the gradient says?"""

import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from lorabench.adapters.places import module_type
from lorabench.adapters.writing.configuration import pattern_key
from lorabench.health.shuffling import shuffled
from lorabench.studies.models import Base
from lorabench.studies.plots import bars
from lorabench.studies.study import Report, Study, mean_of, paired
from lorabench.studies.training import Outcome, Setting, gradient_of

__all__ = ["LayerRanks"]


@dataclass
class LayerRanks(Study):
    """Accuracy by how the budget is spread.

    Args:
        rank: of the uniform adapter whose parameters are the budget.
        classes: of the task.
        source: of its texts.
    """

    rank: int = 8
    classes: int = 8
    source: str = "docstrings"

    def settings(self, base: Base) -> list[Setting]:
        """Every spread with every seed; the allotted ranks are found for each seed by its own gradient."""
        return [setting for group in self._groups(base).values() for setting in group]

    def _groups(self, base: Base) -> dict[str, list[Setting]]:
        own = {"source": self.source, "classes": self.classes}
        groups: dict[str, list[Setting]] = {}
        for seed in range(self.seeds):
            plain = Setting(**self.common(rank=self.rank, alpha=self.rank, seed=seed, **own))
            found = gradient_of(base, plain, self.rank)
            cost = {row.module: sum(row.shape) for row in found.modules}
            inside = sum(numbers for name, numbers in cost.items() if module_type(name) == "attention")
            whole = sum(cost.values())
            wider = {"attention": whole / inside, "feed-forward": whole / (whole - inside)}
            # Names in the wrapped model, without what the classifier puts before them.
            keys = {row.module: pattern_key(row.module.removeprefix("body.")) for row in found.modules}
            pattern = {keys[row.module]: row.rank for row in found.modules}
            shapes = {keys[row.module]: row.shape for row in found.modules}
            drawn = shuffled(pattern, shapes, random.Random(seed))  # noqa: S311  # a baseline, no secret
            spreads = {
                "uniform": plain,
                **{
                    kind: replace(plain, targets=kind, rank=round(self.rank * by), alpha=round(self.rank * by))
                    for kind, by in wider.items()
                },
                "by importance": replace(plain, pattern=tuple(pattern.items())),
                "shuffled": replace(plain, pattern=tuple(drawn.items())),
            }
            for name, setting in spreads.items():
                groups.setdefault(name, []).append(setting)
        return groups

    def report(self, outcomes: Mapping[Setting, Outcome], base: Base) -> Report:
        """Every spread against the uniform one, paired by seed."""
        groups = {name: [outcomes[one] for one in own] for name, own in self._groups(base).items()}
        accuracy = {name: [one.accuracy for one in own] for name, own in groups.items()}
        rows = [
            [
                name,
                str(mean_of(values)),
                f"{statistics.fmean(one.parameters for one in groups[name]):.0f}",
                "" if name == "uniform" else str(paired(values, accuracy["uniform"])),
            ]
            for name, values in accuracy.items()
        ]
        says = []
        for name in ("attention", "feed-forward", "by importance", "shuffled"):
            one = paired(accuracy[name], accuracy["uniform"])
            told = "no interval" if one.low is None or one.high is None else (
                "better" if one.low > 0 else "worse" if one.high < 0 else "not told apart"
            )  # fmt: skip
            says.append(f"{name} against uniform: {one.mean:+.3f}, {told}.")
        gap = paired(accuracy["by importance"], accuracy["shuffled"])
        says.append(f"By importance against the same ranks shuffled: {gap}, what knowing the modules is worth.")
        return Report(("spread", "accuracy", "parameters", "against uniform"), rows, says, {"accuracy": accuracy})

    def figure(self, outcomes: Mapping[Setting, Outcome]) -> Figure:
        """Accuracy by spread."""
        groups: dict[str, list[float]] = {}
        for setting, outcome in outcomes.items():
            groups.setdefault(self._name(setting, outcomes), []).append(outcome.accuracy)
        return bars(groups, "test accuracy, mean and 95 % interval; marks: seeds")

    def _name(self, setting: Setting, outcomes: Mapping[Setting, Outcome]) -> str:
        if not setting.pattern:
            return "uniform" if setting.targets == "all" else setting.targets
        same = [one for one in outcomes if one.seed == setting.seed and one.pattern]
        return "by importance" if setting == same[0] else "shuffled"
