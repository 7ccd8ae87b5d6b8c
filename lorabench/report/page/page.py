"""`report.html`: what was run and what failed, then a chapter for every zoo, target and classifier."""

from collections.abc import Sequence
from pathlib import Path

from lorabench.jobs import PAGE
from lorabench.pages.document import document
from lorabench.pages.parts import Chapter
from lorabench.report.comparison import Cell, cells_of, cells_together, differing
from lorabench.report.folders import Entry
from lorabench.report.page.chapters import chapter
from lorabench.report.seeds import seed_sheet, spreads
from lorabench.report.sweeps import title_of
from lorabench.sheet import Sheet
from lorabench.storage import replace_file
from lorabench.text import counted

__all__ = ["page_html", "write_page"]

_HERE = Path(__file__).parent
_FIRST = ("failed", "killed", "interrupted", "running", "queued", "done")


def page_html(runs: Sequence[Entry], reload: int | None = None) -> str:
    """The whole page: it asks for no other file, from the disk or the network.

    Args:
        runs: jobs of sweeps, and runs by themselves.
        reload: seconds after which a browser reads it again; None: never.
    """
    count = sum(run.status.status != "done" for run in runs)
    return document(
        _HERE / "page.html.j2",
        reload,
        summary=f"{counted(len(runs), 'run')}, {count} not done" if count else f"{counted(len(runs), 'run')}, all done",
        undone=_jobs([run for run in runs if run.status.status != "done"]),
        jobs=_jobs(runs),
        chapters=_chapters(runs),
        spread=seed_sheet(spreads(cells_together(run.result for run in runs if run.result is not None))),
    )


def write_page(folder: Path, runs: Sequence[Entry], reload: int | None = None) -> None:
    """Write `page_html` as `report.html` into a folder, whole or not at all."""
    replace_file(folder / PAGE, page_html(runs, reload))


def _chapters(runs: Sequence[Entry]) -> list[Chapter]:
    tables: dict[tuple[object, ...], tuple[Cell, list[Entry]]] = {}
    for run in runs:
        if run.result is not None:
            cell = cells_of(run.result)[0]
            tables.setdefault(cell.table, (cell, []))[1].append(run)
    places = differing([cell.place for cell, _ in tables.values()])
    return [
        chapter(number, title_of(cell, places), own, places)
        for number, (cell, own) in enumerate(tables.values(), start=1)
    ]


def _jobs(runs: Sequence[Entry]) -> Sheet:
    """Every run, what is not done first."""
    ordered = sorted(runs, key=lambda run: _FIRST.index(run.status.status))
    return Sheet(
        title="Runs",
        columns=("run", "status", "why", "seconds", "peak MB", "device", "folder"),
        rows=[
            (
                run.name,
                run.status.status,
                run.status.error or "",
                _whole(run.status.seconds),
                _whole(run.status.peak_memory_mb),
                run.status.device or "–",
                str(run.folder),
            )
            for run in ordered
        ],
        text=("run", "status", "why", "device", "folder"),
    )


def _whole(value: float | int | None) -> str:
    return "–" if value is None else f"{value:.0f}"
