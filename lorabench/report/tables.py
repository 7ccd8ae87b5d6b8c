"""The tables of a result, on a terminal and in results.txt."""

import io

from rich.console import Console

from lorabench.findings import RankedFinding
from lorabench.report.arms import with_arm
from lorabench.report.learned_tables import learned_sheets
from lorabench.report.phases import phase_report
from lorabench.report.ranked import ranking_sheet
from lorabench.report.scores import scores
from lorabench.report.sheet import Sheet, fitted, width_of
from lorabench.results import Result

__all__ = ["print_table", "table_text"]


def print_table(result: Result, console: Console | None = None) -> None:
    """The tables on a terminal; a narrow one is spared the columns that matter least, which results.txt has."""
    console = console or Console()
    shown = [sheet for sheet in _sheets(result) if not (sheet.long and console.is_terminal)]
    for place, sheet in enumerate(shown):
        if place:
            console.print()
        table = fitted(sheet, console.width if console.is_terminal else None)
        if not console.is_terminal:
            console.width = max(width_of(table), 80)
        console.print(table)


def table_text(result: Result) -> str:
    """The tables as plain text, as wide as they need."""
    lines: list[str] = []
    for sheet in _sheets(result):
        table, text = fitted(sheet), io.StringIO()
        Console(file=text, width=max(width_of(table), 80), no_color=True).print(table)
        lines += ["", *text.getvalue().splitlines()] if lines else text.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _sheets(result: Result) -> list[Sheet]:
    """Representations over all layers, unless the phase's own table has them; then the ranking; then the phase's."""
    own = phase_report(result.ablation).sheets(result, result.ablation)
    compared = any(row.ablation != "none" for row in result.summary)
    found = [] if compared or not with_arm(result, "none") else [scores(result)]
    if isinstance(result.ablation, RankedFinding):
        found.append(ranking_sheet(result, result.ablation))
    return [*found, *own, *learned_sheets(result)]
