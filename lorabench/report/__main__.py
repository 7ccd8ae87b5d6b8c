"""`lorabench report DIR...`: runs and sweeps side by side, read from their folders."""

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from lorabench.commands.frame import Outcome, run_single
from lorabench.commands.options import path_name
from lorabench.errors import explain_disk_errors
from lorabench.jobs import LOCK, PAGE, read_status
from lorabench.report.folders import Entry, entries
from lorabench.report.page import write_page
from lorabench.report.sheet import sheets_text
from lorabench.report.sweeps import all_done, compared, sheets_of, summary_of, write_files
from lorabench.storage import is_locked
from lorabench.text import counted

__all__ = ["EXAMPLE", "INTERRUPTED", "add_arguments", "main", "run"]

EXAMPLE = "lorabench report multirun/2026-11-29/10-30-00-000000 outputs/2026-11-29/11-00-00-000000 --out compared"
INTERRUPTED = "The page stands as it was last written."
_DESCRIPTION = (
    "Runs and sweeps side by side: what is not done, and every representation by how many layers are taken away, with "
    f"what is shown to be better. Writes {PAGE}, summary.csv and summary.json. Exit code 1 if a run is not done."
)
_SEVERAL = Path("compared")
_TO_END = ("queued", "running")
_EVERY = 2
"""Seconds between looks at the folders with --watch."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `report`."""
    parser.add_argument("folders", metavar="DIR", nargs="+", type=path_name, help="folders of runs or of sweeps")
    parser.add_argument(
        "--out", metavar="DIR", type=path_name,
        help=f"where to write (default: the folder itself; {_SEVERAL} of several folders)",
    )  # fmt: skip
    parser.add_argument("--watch", action="store_true", help="write again as runs end, until none is left to end")


def run(args: Namespace) -> Outcome:
    """Read the folders, and write what they say; not ok where a run is not done."""
    out: Path = args.out or (args.folders[0] if len(set(args.folders)) == 1 else _SEVERAL)
    runs = entries(args.folders)
    while args.watch and _at_work(args.folders, runs):
        _write(out, runs, reload=_EVERY)
        left = counted(sum(run.status.status in _TO_END for run in runs), "run")
        print(f"{out / PAGE}: {left} to end", file=sys.stderr)  # noqa: T201
        runs = _changed(args.folders, runs)
    data = _write(out, runs)
    text = sheets_text(sheets_of(runs, compared(runs)))
    return Outcome(data, f"{text}Written to {out / PAGE}", all_done(runs))


def _at_work(folders: Sequence[Path], runs: Sequence[Entry]) -> bool:
    """Whether more is to come: a run is at work, or the sweep that will start one."""
    return any(run.status.status == "running" for run in runs) or any(is_locked(folder / LOCK) for folder in folders)


def _changed(folders: Sequence[Path], before: Sequence[Entry]) -> list[Entry]:
    """The runs once one of them stands otherwise, or no sweep is at work any more."""
    open_ended = [run for run in before if run.status.status in _TO_END]
    while all(read_status(run.folder) == run.status for run in open_ended) and _at_work(folders, before):
        time.sleep(_EVERY)
    return entries(folders)


def _write(out: Path, runs: Sequence[Entry], reload: int | None = None) -> dict[str, object]:
    data = summary_of(runs, compared(runs))
    with explain_disk_errors(out, "Give another --out."):
        out.mkdir(parents=True, exist_ok=True)
        write_files(out, data)
        write_page(out, runs, reload)
    return data


def main(argv: Sequence[str] | None = None, name: str = "python -m lorabench.report") -> int:
    """Run it; see `lorabench.commands.frame` for what it prints and returns."""
    return run_single(name, _DESCRIPTION, sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
