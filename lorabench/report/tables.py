"""The tables of a result, on a terminal and in results.txt."""

import io
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lorabench.report.ablation_tables import ablation_sheets
from lorabench.report.arms import shown_arms, with_arm
from lorabench.report.controls import controls_sheet
from lorabench.report.learned_tables import learned_sheets
from lorabench.report.numbers import counted, difference, interval, mean_std, method, number, over, p_value
from lorabench.report.sheet import Sheet, fitted, width_of
from lorabench.results import LEVEL, METRICS, Result, claimed

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
    for place, sheet in enumerate(_sheets(result) + ([] if console.is_terminal else _every_arm(result))):
        if place:
            console.print()
        table = fitted(sheet, console.width if console.is_terminal else None)
        if not console.is_terminal:
            console.width = max(width_of(table), 80)
        console.print(table)


def table_text(result: Result) -> str:
    """The tables as plain text, as wide as they need."""
    lines: list[str] = []
    for sheet in _sheets(result) + _every_arm(result):
        table, text = fitted(sheet), io.StringIO()
        Console(file=text, width=max(width_of(table), 80), no_color=True).print(table)
        lines += ["", *text.getvalue().splitlines()] if lines else text.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _sheets(result: Result) -> list[Sheet]:
    found = [] if shown_arms(result) or not with_arm(result, "none") else [_scores(result)]
    found += [_between(result)] if result.ablation.get("between") else []
    found += ablation_sheets(result)
    found += [controls_sheet(result)] if result.ablation.get("controls") else []
    return found + learned_sheets(result)


def _scores(result: Result) -> Sheet:
    """Every representation over all layers."""
    rows = with_arm(result, "none")
    caption = [
        counted(result),
        f"mean ± std over {_over(result)}, in % · chance {100 * result.chance:.1f}",
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


def _every_arm(result: Result) -> list[Sheet]:
    """Every metric of every representation and kind of arm, where there are several: beyond a terminal's patience."""
    if not shown_arms(result):
        return []
    sheet = Sheet(
        title="Every arm",
        columns=("representation", "ablation", "features", *(_TITLES[name] for name in METRICS)),
        rows=[
            (
                row.representation,
                row.ablation,
                str(row.features or "–"),
                *(mean_std(getattr(row, name), row) for name in METRICS),
            )
            for row in result.summary
        ],
        caption=[f"mean ± std over {_over(result)}, in %"],
        text=("representation", "ablation"),
    )
    return [sheet]


def _over(result: Result) -> str:
    count = max((row.test_accuracy.n for row in with_arm(result, "none")), default=0)
    return "seeds" if result.split.get("splits", 1) == 1 else over(result, count)


def _between(result: Result) -> Sheet:
    """How far every representation is ahead of those that it is compared with."""
    rows = result.ablation["between"]
    against = [name for name in result.ablation["against"] if any(row["against"] == name for row in rows)]
    cells = {(row["representation"], row["against"]): row for row in rows}
    several, first = bool(rows[0].get("corrected")), rows[0]
    columns: list[str] = []
    for name in against:
        columns += [f"to {name}\n[95 %]", *([f"bootstrap\n({name})"] if several else [])]
        columns += [f"p\n({name})", f"p, Holm\n({name})"]
    body = [
        (name, *(text for other in against for text in _compared(cells.get((name, other)), several)))
        for name in dict.fromkeys(row["representation"] for row in rows)
    ]
    beside = f"; beside it a bootstrap over {first['seeds']} members and {first['adapters']} test adapters"
    return Sheet(
        title="Differences of test accuracy, in points, paired",
        columns=("representation", *columns),
        rows=body,
        caption=[
            f"intervals and p are {method(first)}{beside if several else ''}",
            f"Holm: corrected for {len(rows)} {'comparison' if len(rows) == 1 else 'comparisons'}",
            *(_told(rows, other) for other in against if several),
            *([] if several else ["one split is no ground to call one better than another: splits=5 draws more"]),
        ],
        text=("representation",),
        spare=tuple(c for word in ("p\n", "bootstrap", "p, Holm") for c in columns if c.startswith(word)),
    )


def _compared(row: dict[str, Any] | None, several: bool) -> tuple[str, ...]:
    if row is None:
        return ("–",) * (4 if several else 3)
    p = (p_value(claimed(row)["p"]), p_value(row.get("holm")))
    if not several:
        return (difference(row["difference"], row), *p)
    return (difference(row["difference"], claimed(row)), interval(row, signed=True).strip() or "–", *p)


def _told(rows: Sequence[dict[str, Any]], other: str) -> str:
    """Which are better and worse than `other`: by the corrected interval, and Holm's p over the table below 0.05."""
    told = [
        row for row in rows if row["against"] == other and number(row["holm"]) < LEVEL and _without_zero(claimed(row))
    ]
    sides = {
        "better": [row["representation"] for row in told if row["difference"] > 0],
        "worse": [row["representation"] for row in told if row["difference"] < 0],
    }
    return f"{other}: " + "; ".join(f"{word} are {', '.join(names) or 'none'}" for word, names in sides.items())


def _without_zero(found: dict[str, Any]) -> bool:
    return number(found["low"]) > 0 or number(found["high"]) < 0
