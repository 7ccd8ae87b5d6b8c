"""One job of the web page, and the folder that it lives in.

USER/ID/job.json        how it stands, as the server wrote it
        answer.json     how its command ended, as the worker wrote it
        progress.json   how far it is
        log.txt         what it said on the way
        out/            what it made
"""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from lorabench.errors import LorabenchError
from lorabench.storage import is_neighbour, neighbour, new_folder, replace_file
from lorabench.text import to_json

__all__ = [
    "ANSWER",
    "BROKEN",
    "ENDED",
    "JOB",
    "LOG",
    "OUT",
    "PROGRESS",
    "Job",
    "State",
    "check_name",
    "log_tail",
    "made_files",
    "make_folder",
    "read_jobs",
    "read_object",
    "remove_folder",
    "remove_leftovers",
    "size_of",
    "write_job",
]

JOB, ANSWER, PROGRESS, LOG, OUT = "job.json", "answer.json", "progress.json", "log.txt", "out"
State = Literal["waiting", "running", "done", "failed", "cancelled", "lost"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled", "lost")
BROKEN = 70
"""The code of an answer that only says that there is a bug (EX_SOFTWARE)."""
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_LOG_SHOWN = 1 << 20


@dataclass(frozen=True)
class Job:
    """One command that somebody asked for.

    Attributes:
        id: its name among all jobs.
        user: who asked.
        title: what it is, for people.
        words: the command and its arguments.
        shown: the command as a person would type it.
        made: when it was asked for, in seconds since 1970, as all times here.
        state: "waiting", "running", "done" (it gave its answer, which may say that something is wrong), "failed"
            (it could not), "cancelled" or "lost" (its process is gone without a word).
        inputs: files that it reads.
        room: bytes that a file which it writes may have; None: any number.
        started: when its process began.
        ended: when it was over.
        code: the command's exit code.
        error: why it is not done, in one line.
        pid: of its process, which leads a group.
        stopping: when it was asked to end; it may still run.
        asked: {"adapters": ids, "options": option -> value}, of which the command was made; None where nobody said.
    """

    id: str
    user: str
    title: str
    words: tuple[str, ...]
    shown: str
    made: float | int
    state: State = "waiting"
    inputs: tuple[str, ...] = ()
    room: int | None = None
    started: float | int | None = None
    ended: float | int | None = None
    code: int | None = None
    error: str | None = None
    pid: int | None = None
    stopping: float | int | None = None
    asked: dict[str, Any] | None = None


def check_name(name: str, what: str) -> str:
    """A name that may become one of a folder.

    Raises:
        LorabenchError: it may not.
    """
    if _NAME.fullmatch(name) is None:
        raise LorabenchError(f"{what} {name!r}: 1 to 64 letters, digits, '.', '_' and '-' are allowed, no '.' first")
    return name


def write_job(folder: Path, job: Job) -> None:
    """Write how a job stands.

    Raises:
        OSError: the disk takes no more; what was written before is whole.
    """
    replace_file(folder / JOB, to_json(asdict(job), 1))


def make_folder(folder: Path, job: Job) -> None:
    """Make the folder of a new job, in one step.

    Raises:
        OSError: the disk takes no more; nothing is left.
    """
    with new_folder(folder, replace=False) as partial:
        (partial / OUT).mkdir()
        write_job(partial, job)


def remove_folder(folder: Path) -> None:
    """Remove a job in one step: what an interruption leaves is no job.

    Raises:
        OSError: it cannot be moved; it is left as it was.
    """
    hidden = neighbour(folder)
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def read_jobs(root: Path) -> list[Job]:
    """All jobs of a folder of users, first asked first; what is no job of ours is passed over."""
    found = [_read_job(path) for path in root.glob(f"*/*/{JOB}") if not is_neighbour(path.parent.name)]
    return sorted((job for job in found if job is not None), key=lambda job: (job.made, job.id))


def _read_job(path: Path) -> Job | None:
    data = read_object(path)
    try:
        known = {field.name: data[field.name] for field in fields(Job) if field.name in data} if data else {}
        known |= {name: tuple(map(str, known[name])) for name in ("words", "inputs")}
        job = Job(**known)
        times = (job.made, job.started, job.ended, job.stopping)
        sound = job.state in get_args(State) and all(isinstance(time, int | float | None) for time in times)
        sound = (
            sound
            and isinstance(job.made, int | float)
            and isinstance(job.pid, int | None)
            and isinstance(job.room, int | None)
            and isinstance(job.asked, dict | None)
        )
        named = (job.user, job.id) == (path.parent.parent.name, path.parent.name)
    except (KeyError, TypeError):
        return None
    return job if sound and named and _NAME.fullmatch(job.user) and _NAME.fullmatch(job.id) else None


def read_object(path: Path) -> dict[str, Any] | None:
    """A file of JSON that is an object; None where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def log_tail(folder: Path) -> str:
    """The end of what a job said, a mebibyte at most."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_SHOWN))
            return file.read(_LOG_SHOWN).decode("utf-8", "replace")
    except OSError:
        return ""


def made_files(folder: Path) -> list[str]:
    """Names of the whole files in a job's `out/`, with "/" between folders; links are none of them."""
    out, names = folder / OUT, []
    for place, below, files in os.walk(out):
        below[:] = [name for name in below if not is_neighbour(name)]
        paths = [Path(place, name) for name in files if not is_neighbour(name)]
        names += [path.relative_to(out).as_posix() for path in paths if path.is_file() and not path.is_symlink()]
    return sorted(names)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed worker had begun to write: its names say that it never became whole."""
    for place, below, files in os.walk(folder):
        for name in filter(is_neighbour, below):
            shutil.rmtree(Path(place, name), ignore_errors=True)
        below[:] = [name for name in below if not is_neighbour(name)]
        for name in filter(is_neighbour, files):
            Path(place, name).unlink(missing_ok=True)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; what goes meanwhile, and what links lead to, is not counted."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += Path(place, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total
