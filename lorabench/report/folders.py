"""Runs and sweeps as they lie on disk: what was run, how it ended, and what it found."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabench.errors import LorabenchError
from lorabench.jobs import JOBS, STATUS, Status, read_jobs, read_status
from lorabench.results import Result, read_result

__all__ = ["Entry", "entries"]

_RESULTS = "results.json"


@dataclass(frozen=True)
class Entry:
    """A run, by itself or as a job of a sweep.

    Attributes:
        folder: its own.
        name: what tables call it: a job's axes, or the folder of a run by itself.
        overrides: what it was started with; of a run by itself none are known.
        status: how it stands; "failed" too where its results cannot be read.
        result: what it found; None where it has not ended well.
    """

    folder: Path
    name: str
    overrides: list[str]
    status: Status
    result: Result | None = None


def entries(folders: Sequence[Path]) -> list[Entry]:
    """The runs in some folders, each the folder of a run or of a sweep, in their order.

    A job of a sweep that was never started, or whose results are missing, is an entry too; a run in a sweep's folder
    that is none of its jobs is left out.

    Raises:
        LorabenchError: a folder is neither.
    """
    return [entry for folder in folders for entry in _entries(folder)]


def _entries(folder: Path) -> Iterator[Entry]:
    if (folder / JOBS).exists():
        for job in read_jobs(folder):
            yield _entry(folder / job.folder, job.name, job.overrides)
    elif (folder / STATUS).exists() or (folder / _RESULTS).exists():
        yield _entry(folder, str(folder), [])
    else:
        raise LorabenchError(
            f"{folder}: neither a run (it would have {_RESULTS} or {STATUS}) nor a sweep ({JOBS}). Give a "
            'folder that a command named behind "Written to"'
        )


def _entry(folder: Path, name: str, overrides: list[str]) -> Entry:
    status = read_status(folder)
    if not (folder / STATUS).exists() and (folder / _RESULTS).exists():
        status = Status("done")  # an older run's
    if status.status != "done":
        return Entry(folder, name, overrides, status)
    try:
        return Entry(folder, name, overrides, status, read_result(folder / _RESULTS))
    except FileNotFoundError:
        return Entry(folder, name, overrides, Status("failed", error=f"{_RESULTS} is missing"))
    except (OSError, ValueError) as error:
        return Entry(folder, name, overrides, Status("failed", error=str(error).splitlines()[0]))
