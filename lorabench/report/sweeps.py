"""What came of many runs: failures first, then every representation by how many layers are taken away."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorabench.report.comparison import Cell, differing, interval_of_claim
from lorabench.report.folders import Entry
from lorabench.report.numbers import CONSTANT, error_words, of_constant, percent, plain, spread
from lorabench.report.seeds import seed_sheet, spread_row, spreads
from lorabench.report.standings import Standing, compare
from lorabench.sheet import Sheet, print_sheets
from lorabench.storage import replace_file
from lorabench.text import counted, csv_text, to_json

__all__ = [
    "all_done",
    "column_title",
    "compared",
    "report_data",
    "sheets_of",
    "tables_of",
    "title_of",
    "write_files",
    "write_summary",
]


def write_summary(folder: Path, runs: Sequence[Entry]) -> bool:
    """Write `summary.json` and `summary.csv` into a folder, and print what they say.

    Returns:
        Whether every run is done.
    """
    found = compared(runs)
    write_files(folder, report_data(runs, found))
    print_sheets(sheets_of(runs, found))
    return all_done(runs)


def compared(runs: Sequence[Entry]) -> list[Standing]:
    """The cells of all that has a result."""
    return compare(run.result for run in runs if run.result is not None)


def all_done(runs: Sequence[Entry]) -> bool:
    """Whether every run has ended well."""
    return all(run.status.status == "done" for run in runs)


def write_files(folder: Path, summary: dict[str, Any]) -> None:
    """`summary.json`, and its table as `summary.csv`."""
    replace_file(folder / "summary.json", to_json(summary, 1))
    rows = summary["table"]
    columns = list(rows[0]) if rows else []
    replace_file(folder / "summary.csv", csv_text(columns, [list(row.values()) for row in rows]))


def report_data(runs: Sequence[Entry], found: Sequence[Standing]) -> dict[str, Any]:
    """Runs, cells and what seeds do to them, as data: shares, not percent; what is not defined is NaN."""
    jobs = [
        {
            "folder": run.folder.name,
            "name": run.name,
            "overrides": run.overrides,
            "status": run.status.status,
            "error": run.status.error,
            "seconds": run.status.seconds,
            "peak_memory_mb": run.status.peak_memory_mb,
            "device": run.status.device,
        }
        for run in runs
    ]
    return {
        "jobs": jobs,
        "table": [_row(one) for one in found],
        "spread": [spread_row(one) for one in spreads(row.cell for row in found)],
    }


def sheets_of(runs: Sequence[Entry], found: Sequence[Standing]) -> list[Sheet]:
    """What is not done, where there is such a run, a table of every zoo, target and classifier, and what seeds do."""
    undone = [run for run in runs if run.status.status != "done"]
    sheets = []
    if undone:
        sheets.append(
            Sheet(
                title=f"{counted(len(undone), 'job')} of {len(runs)} not done",
                columns=("job", "status", "why"),
                rows=[(run.name, run.status.status, run.status.error or "–") for run in undone],
                text=("job", "status", "why"),
            )
        )
    tables: dict[tuple[object, ...], list[Standing]] = {}
    for row in found:
        tables.setdefault(row.cell.table, []).append(row)
    places = differing([rows[0].cell.place for rows in tables.values()])
    sheets += [sheet for rows in tables.values() for sheet in tables_of(rows, places)]
    by_seed = spreads(row.cell for row in found)
    return [*sheets, seed_sheet(by_seed)] if by_seed else sheets


def tables_of(rows: Sequence[Standing], places: Sequence[str]) -> list[Sheet]:
    """Accuracies and, of a number, errors: `table_sheet` and `error_sheet`."""
    errors = error_sheet(rows, places)
    return [table_sheet(rows, places), *([] if errors is None else [errors])]


def table_sheet(rows: Sequence[Standing], places: Sequence[str]) -> Sheet:
    """Every representation of one table by how many layers are taken away.

    Args:
        rows: all cells of the table.
        places: options in which it differs from others, for the title.
    """
    by_place = {(row.label, row.cell.top_k): row for row in rows}
    names = list(dict.fromkeys(row.label for row in rows))
    taken = sorted({row.cell.top_k for row in rows})
    cells, first = [row.cell for row in rows], rows[0].cell
    splits, members = max(cell.splits for cell in cells), max(len(cell.accuracy) for cell in cells)
    caption = [
        f"test accuracy, mean ± std in %, of up to {counted(members, 'member')} on {counted(splits, 'split')}",
        f"chance {100 * first.chance:.1f}",
    ]
    caption += [f"{column_title(k)}: {_best([row for row in rows if row.cell.top_k == k])}" for k in taken]
    caption += [
        f"{row.label}, {column_title(row.cell.top_k)}: {error}"
        for row in rows
        for error in dict.fromkeys(row.cell.failed.values())
    ]
    return Sheet(
        title=title_of(first, places),
        columns=("representation", *(column_title(k) for k in taken)),
        rows=[(one, *(_cell(by_place.get((one, k))) for k in taken)) for one in names],
        caption=caption,
        text=("representation",),
    )


def error_sheet(rows: Sequence[Standing], places: Sequence[str]) -> Sheet | None:
    """How far off the expected number is in every cell of one table; None where classes have no order.

    Args:
        rows: all cells of the table.
        places: options in which it differs from others, for the title.
    """
    first = rows[0].cell
    if not first.unit:
        return None
    return Sheet(
        title=f"{title_of(first, places)}: errors",
        columns=("representation", "layers", "MAE", "R²"),
        rows=[
            *((row.label, column_title(row.cell.top_k), plain(row.cell.mae), plain(row.cell.r2)) for row in rows),
            (CONSTANT, "–", *of_constant(*first.constant)),
        ],
        caption=[error_words(first.unit)],
        text=("representation", "layers"),
    )


def title_of(cell: Cell, places: Sequence[str]) -> str:
    """What all cells of a cell's table have in common; `places` are options in which it differs from others."""
    apart = [f"{name}={cell.place[name]}" for name in places if name in cell.place]
    return ", ".join([cell.dataset, cell.target, cell.classifier, *apart])


def column_title(top_k: int) -> str:
    """What a column is called.

    >>> column_title(0), column_title(3)
    ('all layers', 'without best 3')
    """
    return f"without best {top_k}" if top_k else "all layers"


def _cell(row: Standing | None) -> str:
    if row is None:
        return "–"
    if not row.cell.accuracy:
        return "failed"
    return f"{percent(row.cell.mean)}{spread(row.cell.std)}{' *' if row.alone else ''}"


def _best(column: Sequence[Standing]) -> str:
    """Whether one representation is shown to be the best, in words."""
    best = next((row for row in column if row.best), None)
    if best is None:
        return "nothing ended well"
    others = [row for row in column if row is not best and row.cell.accuracy]
    if not others:
        return f"{best.label} has no other beside it"
    if best.alone:
        return (
            f"* {best.label} is better than every other (corrected t, Holm over {counted(len(others), 'comparison')})"
        )
    ahead = all(row.cell.mean <= best.cell.mean for row in others)
    said = f"{best.label} {'has the highest mean' if ahead else 'is ahead on the splits that it and others have'}"
    near = [row.label for row in others if row.difference is not None and not (row.shown_below or row.shown_above)]
    if near and best.cell.splits < 3:
        return f"{said}; {counted(best.cell.splits, 'split')} cannot show more"
    said += f", and is not told from {', '.join(near)}" if near else ""
    return "; ".join([said, *_limits(best, others)])


def _limits(best: Standing, others: Sequence[Standing]) -> list[str]:
    """Why one that is ahead is not called better than every other, beside those that it is not told from."""
    above = [row.label for row in others if row.shown_above]
    unpaired = [row.label for row in others if row.difference is None]
    more = [row.label for row in others if row.cell.split_means.keys() - best.cell.split_means.keys()]
    return [
        *([f"{', '.join(above)} is shown to be better where both were tested"] if above else []),
        *([f"it has no split and member in common with {', '.join(unpaired)}"] if unpaired else []),
        *([f"it lacks splits of {', '.join(more)}, and is not called better"] if more else []),
    ]


def _row(row: Standing) -> dict[str, Any]:
    cell: Cell = row.cell
    low, high = cell.interval()
    gap = row.difference
    gap_low, gap_high = (math.nan, math.nan) if math.isnan(row.p) else interval_of_claim(gap)
    return {
        "dataset": cell.dataset,
        "zoo": cell.zoo,
        "target": cell.target,
        "classifier": cell.classifier,
        "representation": cell.representation,
        "label": row.label,
        "top_k": cell.top_k,
        "features": cell.features,
        "splits": cell.splits,
        "n": len(cell.accuracy),
        "failed": len(cell.failed),
        "test_accuracy": cell.mean,
        "std": cell.std,
        "split_std": math.sqrt(cell.variance.split),
        "member_std": math.sqrt(cell.variance.member),
        "low": low,
        "high": high,
        "best": row.best,
        "better_than_all": row.alone,
        "to_best": math.nan if gap is None else gap.mean,
        "to_best_low": gap_low,
        "to_best_high": gap_high,
        "p": row.p,
        "holm": row.holm,
        "chance": cell.chance,
        "mae": cell.mae.mean,
        "mae_std": cell.mae.std,
        "r2": cell.r2.mean,
        "r2_std": cell.r2.std,
        "unit": cell.unit,
    }
