"""The tables of a result, on a terminal and in results.txt."""

from rich.console import Console

from lorabench.findings import RankedFinding
from lorabench.report.arms import with_arm
from lorabench.report.learned_tables import learned_sheets
from lorabench.report.phases import phase_report
from lorabench.report.ranked import ranking_sheet
from lorabench.report.scores import scores
from lorabench.results import Result
from lorabench.sheet import Sheet, print_sheets, sheets_text

__all__ = ["print_table", "table_text"]


def print_table(result: Result, console: Console | None = None) -> None:
    """The tables on a terminal; a narrow one is spared the columns that matter least, which results.txt has."""
    print_sheets(_sheets(result), console)


def table_text(result: Result) -> str:
    """The tables as plain text, as wide as they need."""
    return sheets_text(_sheets(result))


def _sheets(result: Result) -> list[Sheet]:
    """Representations over all layers, unless the phase's own table has them; then the ranking; then the phase's."""
    own = phase_report(result.ablation).sheets(result, result.ablation)
    compared = any(row.ablation != "none" for row in result.summary)
    found = [] if compared or not with_arm(result, "none") else [scores(result)]
    if isinstance(result.ablation, RankedFinding):
        found.append(ranking_sheet(result, result.ablation))
    return [*found, *own, *learned_sheets(result)]
