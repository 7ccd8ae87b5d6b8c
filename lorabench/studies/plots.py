"""Pictures that studies share."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from lorabench.pictures import SERIES, tidy
from lorabench.studies.study import mean_of
from lorabench.studies.training import Outcome

__all__ = ["bars", "over_steps"]


def over_steps(groups: Mapping[str, Sequence[Outcome]], metric: str, label: str) -> Figure:
    """A metric of the looks over the steps: a line for every group, its mean over seeds, and the seeds behind it."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, (name, outcomes) in enumerate(groups.items()):
        colour, marker = SERIES[place % len(SERIES)]
        curves = [[(int(step), look[metric]) for step, look in one.looks.items() if metric in look] for one in outcomes]
        for curve in curves:
            axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.25, linewidth=0.8)
        steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
        means = [mean_of([dict(curve)[step] for curve in curves]).mean for step in steps]
        axes.plot(steps, means, color=colour, marker=marker, markersize=4, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(axes)
    return figure


def bars(groups: Mapping[str, Sequence[float]], label: str) -> Figure:
    """Shares: means over seeds with their intervals, and the seeds as marks. Two seeds may reach out of the picture."""
    figure = Figure(figsize=(6.5, 0.9 + 0.34 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for place, values in enumerate(groups.values()):
        mean = mean_of(values)
        axes.plot(values, [place] * len(values), "|", color=SERIES[1][0], markersize=8)
        error = None if mean.low is None else [[mean.mean - mean.low], [(mean.high or 0) - mean.mean]]
        axes.errorbar([mean.mean], [place], xerr=error, fmt="o", color=SERIES[0][0], capsize=3, markersize=5)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel(label)
    tidy(axes, "x")
    return figure
