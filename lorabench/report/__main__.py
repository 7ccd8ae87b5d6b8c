"""`lorabench report DIR...`: runs and sweeps side by side, read from their folders."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from lorabench.commands.frame import Outcome, run_single
from lorabench.commands.options import path_name
from lorabench.errors import explain_disk_errors
from lorabench.report.folders import entries
from lorabench.report.sheet import sheets_text
from lorabench.report.sweeps import all_done, compared, sheets_of, summary_of, write_files

__all__ = ["EXAMPLE", "add_arguments", "main", "run"]

EXAMPLE = "lorabench report multirun/2026-11-29/10-30-00-000000 outputs/2026-11-29/11-00-00-000000 --out compared"
_DESCRIPTION = (
    "Runs and sweeps side by side: what is not done, and every representation by how many layers are taken away, with "
    "what is shown to be better. Exit code 1 if a run is not done."
)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `report`."""
    parser.add_argument("folders", metavar="DIR", nargs="+", type=path_name, help="folders of runs or of sweeps")
    parser.add_argument("--out", metavar="DIR", type=path_name, help="write summary.json and summary.csv there")


def run(args: Namespace) -> Outcome:
    """Read the folders; not ok where a run is not done."""
    runs = entries(args.folders)
    found = compared(runs)
    data = summary_of(runs, found)
    text = sheets_text(sheets_of(runs, found))
    if args.out is not None:
        out: Path = args.out
        with explain_disk_errors(out, "Give another --out."):
            out.mkdir(parents=True, exist_ok=True)
            write_files(out, data)
        text += f"Written to {out}"
    return Outcome(data, text.rstrip(), all_done(runs))


def main(argv: Sequence[str] | None = None, name: str = "python -m lorabench.report") -> int:
    """Run it; see `lorabench.commands.frame` for what it prints and returns."""
    return run_single(name, _DESCRIPTION, sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
