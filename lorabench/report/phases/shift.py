"""What representations lose where the test adapters are not as the training adapters are."""

import functools
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from lorabench.ablation.copies import Altered
from lorabench.ablation.shift import ShiftFinding
from lorabench.findings import LEVEL
from lorabench.report.altered import altered_figure, altered_sheet, loses, read_from
from lorabench.report.numbers import difference, percent
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]

_NAMED = 3


def sheets(result: Result, found: ShiftFinding) -> list[Sheet]:
    """Shift by representation, and every number behind it."""
    if not found.rows:
        return []
    every = altered_sheet(found.rows, "Every shift", "shift", "shifts of a representation", [])
    return [_matrix(result, found.rows), Sheet(**{**vars(every), "long": True})]


def figures(result: Result, found: ShiftFinding) -> dict[str, Callable[[], Figure]]:
    """The differences."""
    if not found.rows:
        return {}
    return {"shift": functools.partial(altered_figure, result, found.rows, "trained on one recipe, tested on another")}


def _matrix(result: Result, rows: Sequence[Altered]) -> Sheet:
    names, shifts = (list(dict.fromkeys(getattr(row, key) for row in rows)) for key in ("representation", "alteration"))
    cells = {(row.alteration, row.representation): row for row in rows}
    return Sheet(
        title=f"What {result.dataset['name']} says where test adapters are not as training adapters are",
        columns=("shift", *names),
        rows=[(shift, *(_cell(cells.get((shift, name))) for name in names)) for shift in shifts],
        caption=[
            "test accuracy in %, and its difference to that without the shift, in points [95 %]",
            "*: Holm's p below 0.05",
            *read_from(rows, "shifts of a representation"),
            *(line for name in names for line in _told(name, [row for row in rows if row.representation == name])),
        ],
        text=("shift",),
        spare=tuple(reversed(names[1:])),
    )


def _cell(row: Altered | None) -> str:
    if row is None:
        return "–"
    return f"{percent(row.accuracy)}  {difference(row.difference, row.claimed)}{'*' if row.holm < LEVEL else ' '}"


def _told(name: str, rows: Sequence[Altered]) -> list[str]:
    """By what one representation is shown to lose, the worst first."""
    falls = sorted(filter(loses, rows), key=lambda row: row.difference)
    if not falls:
        return [f"verdict: {name} is not shown to lose anything"]
    worst = ", ".join(f"{row.alteration} ({100 * row.difference:+.1f})" for row in falls[:_NAMED])
    more = f" and {len(falls) - _NAMED} more" if len(falls) > _NAMED else ""
    rest = len(rows) - len(falls)
    return [f"verdict: {name} loses by {worst}{more}; by {rest} of {len(rows)} it is not shown to"]
