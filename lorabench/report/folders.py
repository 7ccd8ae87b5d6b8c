"""Runs and sweeps as they lie on disk: what was run, how it ended, and what it found."""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lorabench.conf_dir import conf_dir
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
        return shlex.join(["python", "-m", "lorabench", *_of_hydra(self.folder), *words])


def entries(folders: Sequence[Path]) -> list[Entry]:
    """The runs in some folders, each the folder of a run or of a sweep, in their order.

    A job of a sweep that was never started, or whose results are missing, is an entry too; a run in a sweep's folder
    that is none of its jobs is left out. One that is named in several ways is one entry, as it was named first.

    Raises:
        LorabenchError: a folder is neither.
    """
    found: dict[str, Entry] = {}
    for folder in folders:
        for entry in _entries(folder):
            found.setdefault(os.path.realpath(entry.folder), entry)
    return list(found.values())


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
    found = _hydra(folder, "overrides.yaml")
    return [str(word) for word in found] if isinstance(found, list) else []


def _hydra(folder: Path, name: str) -> Any:
    """A file of those that Hydra has kept of a run; None where it cannot be read."""
    try:
        return yaml.safe_load((folder / ".hydra" / name).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _of_hydra(folder: Path) -> list[str]:
    """The options by which a run was started from another configuration than lorabench's own, such as that of a run.

    Such a one says `output_dir` too, and it is that of the run that it came of.
    """
    kept = _hydra(folder, "hydra.yaml")
    try:
        runtime, name = kept["hydra"]["runtime"], kept["hydra"]["job"]["config_name"]
        known = {one["provider"]: one["path"] for one in runtime["config_sources"] if one["schema"] == "file"}
        source = Path(runtime["cwd"], known["main"])
    except (KeyError, TypeError):
        return []
    own = Path(known.get("lorabench", conf_dir()))  # where it was then, which may be another checkout
    words = [] if source == own else ["--config-path", str(source)]
    words += ["--config-name", str(name)] if words or name != "config" else []
    config = _hydra(folder, "config.yaml")
    names_folder = isinstance(config, dict) and config.get("output_dir") is not None
    return [*words, "output_dir=null"] if words and names_folder else words


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
