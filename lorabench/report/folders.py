"""Runs and sweeps as they lie on disk: what was run, how it ended, and what it found."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from lorabench.errors import LorabenchError
from lorabench.jobs import JOBS, RESULTS, STATUS, Status, read_jobs, read_status
from lorabench.results import Result, read_result

__all__ = ["Entry", "entries", "result_in"]


@dataclass(frozen=True)
class Entry:
    """A run, by itself or as a job of a sweep.

    Attributes:
        folder: its own.
        name: what tables call it: a job's axes, or the folder of a run by itself.
        overrides: what it was started with; none where nobody knows.
        status: how it stands; "failed" too where its results cannot be read.
        result: what it found; None where it has not ended well.
    """

    folder: Path
    name: str
    overrides: list[str]
    status: Status
    result: Result | None = None

    @property
    def command(self) -> str:
        """What runs it again, into another folder."""
        words = [word for word in self.overrides if not word.startswith("output_dir=")]
        return shlex.join(["python", "-m", "lorabench", *words])


def entries(folders: Sequence[Path]) -> list[Entry]:
    """The runs in some folders, each the folder of a run or of a sweep, in their order.

    A job of a sweep that was never started, or whose results are missing, is an entry too; a run in a sweep's folder
    that is none of its jobs is left out.

    Raises:
        LorabenchError: a folder is neither.
    """
    return [entry for folder in dict.fromkeys(folders) for entry in _entries(folder)]


def _entries(folder: Path) -> Iterator[Entry]:
    if (folder / JOBS).exists():
        for job in read_jobs(folder):
            place = folder / job.folder
            status = read_status(place)
            if status.status == "done" and status.configuration != job.configuration:
                status = Status("queued", error="what lies in its folder is another job's")
            yield _entry(place, job.name, job.overrides, status)
    elif (folder / STATUS).exists() or (folder / RESULTS).exists():
        older = not (folder / STATUS).exists()
        yield _entry(folder, str(folder), _overrides(folder), Status("done") if older else read_status(folder))
    else:
        raise LorabenchError(
            f"{folder}: neither the folder of a run (it would have {RESULTS} or {STATUS}) nor of a sweep ({JOBS}). "
            'Give one that a command named behind "Written to"'
        )


def _overrides(folder: Path) -> list[str]:
    """As Hydra has kept them."""
    try:
        found = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return [str(word) for word in found] if isinstance(found, list) else []


def _entry(folder: Path, name: str, overrides: list[str], status: Status) -> Entry:
    if status.status != "done":
        return Entry(folder, name, overrides, status)
    try:
        return Entry(folder, name, overrides, status, result_in(folder))
    except LorabenchError as error:
        return Entry(folder, name, overrides, Status("failed", error=str(error)))


def result_in(folder: Path) -> Result:
    """The result of the run in a folder.

    Raises:
        LorabenchError: it is not there, of another version, or damaged.
    """
    path = folder / RESULTS
    try:
        return read_result(path)
    except (OSError, ValueError) as error:
        raise LorabenchError(f"{path} cannot be used ({str(error).splitlines()[0]}): run it again") from error
