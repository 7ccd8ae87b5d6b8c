"""The controls and the ceiling of a comparison: their table, and their lines in its pictures."""

from matplotlib.axes import Axes

from lorabench.ablation.compare import CompareFinding
from lorabench.ablation.controls import Controls, best_control
from lorabench.ablation.none import NoneFinding
from lorabench.pictures import GREEN, GREY
from lorabench.report.numbers import difference, measured, method, p_value
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["controls_sheets", "draw_controls"]


def _controls(result: Result) -> Controls | None:
    found = result.ablation
    return found.controls if isinstance(found, NoneFinding | CompareFinding) else None


def controls_sheets(result: Result) -> list[Sheet]:
    """Every control and the ceiling, and which representations are above the best control; no table without any."""
    found = _controls(result)
    if found is None:
        return []
    rows = [(row.name, measured(row.accuracy) if row.accuracy else "failed", row.text) for row in found.rows]
    said = [
        f"{row.representation} {'reads' if row.above else 'is not shown to read'} the {result.target} above the "
        f"best control ({row.best}): {difference(row.difference, row.claimed)}, p {p_value(row.holm)} (Holm)"
        for row in found.above
    ]
    sheet = Sheet(
        title="Controls and ceiling: the same classifier, members and splits",
        columns=("control", "test acc [95 %]", "it reads"),
        rows=rows,
        caption=[
            *said,
            *(f"differences in points, paired; interval and p are {method(row)}" for row in found.above[:1]),
            *(f"{row.name} failed: {row.error}" for row in found.rows if row.error),
        ],
        text=("control", "it reads"),
        spare=("it reads",),
    )
    return [sheet]


def draw_controls(axes: Axes, result: Result) -> None:
    """Upright lines at the best control and at the ceiling, where they are known."""
    found = _controls(result)
    if found is None:
        return
    best = best_control(found.rows)
    if best is not None and best.accuracy:
        axes.axvline(100 * best.accuracy.mean, color=GREY, linestyle=":", label=f"best control: {best.name}")
    for row in found.rows:
        if row.kind == "ceiling" and row.accuracy:
            axes.axvline(100 * row.accuracy.mean, color=GREEN, linestyle="-.", label=f"ceiling: {row.text}")
