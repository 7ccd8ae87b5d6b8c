"""What the benchmark found: the folders of runs and sweeps that the server was given, each with its page."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabench.errors import LorabenchError
from lorabench.jobs import JOBS, LOCK, RESULTS, STATUS, read_jobs, read_status
from lorabench.storage import is_locked

__all__ = ["Run", "Runs"]

_DEEPEST = 4


@dataclass(frozen=True)
class Run:
    """A run or a sweep.

    Attributes:
        id: what requests call it.
        name: its folder, below the one that the server was given.
        folder: the whole path.
        sweep: whether it has jobs.
        done: runs that have ended well.
        count: of all runs.
        live: whether one is at work.
        changed: when it last changed, seconds since 1970.
    """

    id: str
    name: str
    folder: Path
    sweep: bool
    done: int
    count: int
    live: bool
    changed: float


class Runs:
    """All of them; they are only read.

    Args:
        folders: of runs and sweeps, or above them.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)

    def all(self) -> list[Run]:
        """The newest first."""
        found = {folder: root for root in self._folders for folder in _below(root, _DEEPEST)}
        runs = (_run(folder, root) for folder, root in found.items())
        return sorted((run for run in runs if run is not None), key=lambda run: run.changed, reverse=True)

    def page(self, run_id: str) -> str:
        """The report of one, as it stands.

        Raises:
            LorabenchError: there is none of this id, or it cannot be read.
        """
        found = next((run for run in self.all() if run.id == run_id), None)
        if found is None:
            raise LorabenchError(f"there is no run {run_id[:40]!r} here.")
        from lorabench.report.folders import (
            entries,  # it takes seconds to import, and the server shall be there at once
        )
        from lorabench.report.page import page_html

        return page_html(entries([found.folder]))


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Sweeps and runs; what lies in one is its own."""
    try:
        inside = {entry.name: entry for entry in os.scandir(folder)}
    except OSError:
        return
    if {JOBS, STATUS, RESULTS} & set(inside):
        yield folder
    elif depth:
        for name, entry in inside.items():
            if entry.is_dir(follow_symlinks=False) and not name.startswith("."):
                yield from _below(folder / name, depth - 1)


def _run(folder: Path, root: Path) -> Run | None:
    """None: it went meanwhile, or its list of jobs is damaged."""
    try:
        return _found(folder, root)
    except (FileNotFoundError, LorabenchError):
        return None


def _found(folder: Path, root: Path) -> Run:
    name = folder.relative_to(root).as_posix() if folder != root else folder.resolve().name
    sweep = (folder / JOBS).exists()
    places = [folder / job.folder for job in read_jobs(folder)] if sweep else [folder]
    # A run of an older version has its results alone.
    standing = [read_status(place).status if sweep or (place / STATUS).exists() else "done" for place in places]
    return Run(
        id=hashlib.sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:16],
        name=name,
        folder=folder,
        sweep=sweep,
        done=standing.count("done"),
        count=len(standing),
        live="running" in standing or (sweep and is_locked(folder / LOCK)),
        changed=max(path.stat().st_mtime for path in (folder, *folder.glob("*.json"))),
    )
