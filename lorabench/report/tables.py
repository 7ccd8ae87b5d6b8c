"""The tables of a result, on a terminal and in results.txt."""

import io

from rich.console import Console

from lorabench.report.ablation_tables import ablation_sheets
from lorabench.report.arms import shown_arms, with_arm
from lorabench.report.learned_tables import learned_sheets
from lorabench.report.numbers import counted, difference, mean_std, p_value
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
    found += [_between(result)] if result.ablation.get("between") else []
    return found + ablation_sheets(result) + learned_sheets(result)


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


def _between(result: Result) -> Sheet:
    """How far every representation is ahead of those that it is compared with."""
    rows = result.ablation["between"]
    against = [name for name in result.ablation["against"] if any(row["against"] == name for row in rows)]
    cells = {(row["representation"], row["against"]): row for row in rows}
    columns: list[str] = []
    for name in against:
        columns += [f"to {name}\n[95 %]", f"p\n({name})"]
    body = []
    for name in dict.fromkeys(row["representation"] for row in rows):
        texts = []
        for other in against:
            row = cells.get((name, other))
            texts += ["–", "–"] if row is None else [difference(row["difference"], row), p_value(row["p"])]
        body.append((name, *texts))
    first = rows[0]
    return Sheet(
        title="Differences of test accuracy, in points, paired",
        columns=("representation", *columns),
        rows=body,
        caption=[
            f"intervals and p are a bootstrap over {first['seeds']} seeds and {first['adapters']} test adapters",
            "p is not corrected for the number of comparisons",
        ],
        text=("representation",),
        spare=tuple(column for column in columns if column.startswith("p")),
    )
