"""The tables of a result, on a terminal and in results.txt."""

import io

from rich.console import Console

from lorabench.report.ablation_tables import ablation_sheets
from lorabench.report.arms import shown_arms, with_arm
from lorabench.report.numbers import counted, mean_std
from lorabench.report.sheet import Sheet, fitted, width_of
from lorabench.results import METRICS, Result

__all__ = ["print_table", "table_text"]

_TITLES = {
    "train_accuracy": "train acc",
    "val_accuracy": "val acc",
    "test_accuracy": "test acc",
    "test_macro_f1": "macro-F1",
    "test_auroc": "AUROC",
}


def print_table(result: Result, console: Console | None = None) -> None:
    """The tables on a terminal; a narrow one is spared the columns that matter least, which results.txt has."""
    console = console or Console()
    for number, sheet in enumerate(_sheets(result)):
        if number:
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
    found = [] if shown_arms(result) or not with_arm(result, "none") else [_scores(result)]
    return found + ablation_sheets(result)


def _scores(result: Result) -> Sheet:
    """Every representation over all layers."""
    rows = with_arm(result, "none")
    caption = [
        counted(result),
        f"mean ± std over seeds, in % · chance {100 * result.chance:.1f}",
        *(f"{row.representation} failed: {error}" for row in rows for error in row.failed),
    ]
    return Sheet(
        title=f"What the weights of {result.dataset['name']} say about the {result.target}",
        columns=("representation", "features", *(_TITLES[name] for name in METRICS)),
        rows=[
            (row.representation, str(row.features or "–"), *(mean_std(getattr(row, name), row) for name in METRICS))
            for row in rows
        ],
        caption=caption,
        text=("representation",),
        spare=("train acc", "features", "val acc", "macro-F1"),
    )
