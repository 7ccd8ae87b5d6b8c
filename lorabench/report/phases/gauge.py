"""What representations say of re-gauged adapters."""

import functools
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from lorabench.ablation.copies import Altered
from lorabench.ablation.gauge import GaugeFinding
from lorabench.report.altered import altered_figure, altered_sheet, loses
from lorabench.report.numbers import difference
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]


def sheets(result: Result, found: GaugeFinding) -> list[Sheet]:
    """The differences."""
    if not found.rows:
        return []
    draws = f"the mean of {found.draws} draws" if found.draws > 1 else "one draw"
    caption = [f"test adapters as (up·G, G⁻¹·down): ΔW is as it was; {draws} of G", *_told(found.rows)]
    title = f"What {result.dataset['name']} says in another gauge"
    return [altered_sheet(found.rows, title, "G", "representations", caption)]


def figures(result: Result, found: GaugeFinding) -> dict[str, Callable[[], Figure]]:
    """The differences."""
    if not found.rows:
        return {}
    return {"gauge": functools.partial(altered_figure, result, found.rows, "test adapters in another gauge")}


def _told(rows: Sequence[Altered]) -> list[str]:
    """Who says the same of all, and who loses."""
    names = dict.fromkeys(row.representation for row in rows)
    own = {name: [row for row in rows if row.representation == name] for name in names}
    same = [name for name, found in own.items() if all(row.same == 1 for row in found)]
    falls = [min(filter(loses, found), key=_change) for found in own.values() if any(map(loses, found))]
    worst = sorted(falls, key=_change)
    losing = [f"{row.representation} ({difference(row.difference, row.claimed)}, {row.alteration})" for row in worst]
    rest = [name for name in names if name not in same and not any(map(loses, own[name]))]
    lines = [
        f"verdict: unmoved, every prediction is as before: {', '.join(same) or 'none'}",
        f"verdict: shown to lose something, at worst: {'; '.join(losing) or 'none'}",
    ]
    return lines + ([f"verdict: moved, and not shown to lose anything: {', '.join(rest)}"] if rest else [])


def _change(row: Altered) -> float:
    return row.difference
