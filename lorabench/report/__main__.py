"""`lorabench report DIR...`: runs and sweeps side by side, read from their folders."""

import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from lorabench.commands.frame import Outcome, run_single
from lorabench.commands.options import path_name
from lorabench.errors import explain_disk_errors
from lorabench.jobs import LOCK, PAGE, Status, read_status
from lorabench.report.folders import Entry, entries
from lorabench.report.page import write_page
from lorabench.report.standings import Standing
from lorabench.report.sweeps import all_done, compared, report_data, sheets_of, write_files
from lorabench.sheet import sheets_text
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
_EVERY = 2
"""Seconds between looks at the folders with --watch."""
_RELOAD = 30
"""Seconds after which a browser reads a watched page again: what was opened and sorted is lost then."""


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
    out: Path = args.out or (args.folders[0] if len(set(map(os.path.realpath, args.folders))) == 1 else _SEVERAL)
    try:
        if args.watch:
            _watch(args.folders, out)
    finally:  # however it ends, no browser reads the page again and again
        runs = entries(args.folders)
        found = compared(runs)
        data = _write(out, runs, found)
    text = sheets_text(sheets_of(runs, found))
    return Outcome(data, f"{text}Written to {out / PAGE}", all_done(runs))


def _watch(folders: Sequence[Path], out: Path) -> None:
    """Write again whenever a run stands otherwise, until none is at work and no sweep's command waits for one."""
    before: list[Status] = []
    runs = entries(folders)
    while True:
        now = [read_status(run.folder) for run in runs]
        if not any(one.status == "running" for one in now) and not any(is_locked(folder / LOCK) for folder in folders):
            return
        if now != before:
            runs, before = entries(folders), now
            _write(out, runs, compared(runs), reload=_RELOAD)
            left = sum(one.status in ("queued", "running") for one in now)
            print(f"{out / PAGE}: {counted(left, 'run')} to end", file=sys.stderr)  # noqa: T201
        time.sleep(_EVERY)


def _write(out: Path, runs: Sequence[Entry], found: Sequence[Standing], reload: int | None = None) -> dict[str, object]:
    data = report_data(runs, found)
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
