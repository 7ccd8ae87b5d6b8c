"""What a run's folder says of the run: `status.json`; and what a sweep's folder says of its jobs: `sweep.json`.

Nothing about a sweep is taken from what a launcher returns (one that loses a job may lose all that it had to say):
whoever wants to know reads these files and the jobs' `results.json`.
"""

import json
import os
import resource
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.options import AtLeast, AtMost, OneOf, check_arguments
from lorabench.storage import replace_file
from lorabench.text import to_json

__all__ = [
    "JOBS",
    "LOCK",
    "PAGE",
    "RESULTS",
    "STATUS",
    "Job",
    "Note",
    "State",
    "Status",
    "abandon",
    "at_work",
    "output_folder",
    "peak_memory_mb",
    "process_lives",
    "queue",
    "read_jobs",
    "read_status",
    "status_of",
    "sweep_of",
    "write_jobs",
]

STATUS, JOBS, RESULTS, PAGE = "status.json", "sweep.json", "results.json", "report.html"
LOCK = ".sweep.lock"
State = Literal["queued", "running", "killed", "interrupted", "failed", "done"]
_CLOCKS_S = 60  # by which the clocks of a machine and of its disk may differ
_KIB_PER_MB = 1e6 / 1024 if sys.platform != "darwin" else 1e6  # ru_maxrss counts bytes there


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        status: "queued", "running", "killed" (it ran on this machine, and its process is gone), "interrupted",
            "failed" or "done".
        error: the last line of what went wrong.
        seconds: that it took, or had taken when it failed.
        peak_memory_mb: the most that its process held, with whatever ran in that process before.
        device: that members were trained on.
        configuration: hash of the configuration and the code.
        fingerprint: of the zoo's content.
        pid: of its process.
        host: name of its machine.
    """

    status: Annotated[str, OneOf(get_args(State))]
    error: str | None = None
    seconds: Annotated[float | int | None, AtLeast(0)] = None
    peak_memory_mb: Annotated[float | int | None, AtLeast(0)] = None
    device: str | None = None
    configuration: str | None = None
    fingerprint: str | None = None
    pid: Annotated[int | None, AtLeast(1), AtMost(2**31 - 1)] = None
    host: str | None = None


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        folder: name of its folder in the sweep's.
        name: the values of what the sweep goes over, such as "representation=stats seed=0".
        overrides: all that it was started with.
        configuration: hash of its configuration and the code; "" where nothing can be made of it.
    """

    folder: str
    name: str
    overrides: list[str]
    configuration: str


class Note:
    """What a run at work says of itself.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATUS
        self._known: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname()}
        self._known["configuration"] = read_status(folder).configuration  # as it was queued
        self._started = time.perf_counter()

    def running(self, **known: Any) -> None:
        """It is at work, and fields of `Status` are known."""
        self._known |= known
        self._write("running")

    def ended(self, status: State, error: str | None = None) -> None:
        """It is no longer at work."""
        self._known |= {"seconds": round(time.perf_counter() - self._started, 2), "error": error}
        self._known["peak_memory_mb"] = peak_memory_mb()
        self._write(status)

    def _write(self, status: State) -> None:
        replace_file(self._path, f"{to_json({'status': status, **self._known})}\n")


def peak_memory_mb() -> float:
    """The most that this process has held so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_PER_MB, 1)


def output_folder(output_dir: Any) -> Path | None:
    """The folder that the option `output_dir` names, which is made; None where it names none.

    Raises:
        LorabenchError: it is no name, or no folder can be made of it.
    """
    if output_dir is None:
        return None
    if not output_dir or not isinstance(output_dir, str):
        raise LorabenchError(f"output_dir={output_dir!r}: the name of a folder is needed")
    if "${" in output_dir:
        raise LorabenchError(f"output_dir={output_dir}: Hydra takes ${{...}} for another option: take another name")
    folder = Path(output_dir)
    with explain_disk_errors(folder, "Take another output_dir."):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def status_of(folder: Path) -> Iterator[Note]:
    """Keep a run's `status.json` up to date, whatever becomes of the run.

    Where one that fails leaves the results of an earlier run as they were, their status stays with them.
    """
    earlier = _finished(folder)
    note = Note(folder)
    note.running()
    try:
        yield note
    finally:
        error = sys.exception()
        if error is None:
            note.ended("done")
        elif earlier is not None and _stamp(folder / RESULTS) == earlier[0]:
            replace_file(folder / STATUS, earlier[1])
        elif isinstance(error, KeyboardInterrupt | SystemExit):  # the latter: SLURM takes the job back, to go on later
            note.ended("interrupted")
        else:
            note.ended("failed", f"{type(error).__name__}: {error}".splitlines()[-1])


def _finished(folder: Path) -> tuple[tuple[int, int], bytes] | None:
    """Of the finished run in a folder, which file its results are, and its `status.json`; None where there is none."""
    stamp = _stamp(folder / RESULTS)
    if stamp is None or read_status(folder).status != "done":
        return None
    return stamp, (folder / STATUS).read_bytes()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def read_status(folder: Path) -> Status:
    """How the run in a folder stands; one of which nothing is written, or what is written is no status, is queued."""
    try:
        data = json.loads((folder / STATUS).read_text())
        known = {field.name: data[field.name] for field in fields(Status) if field.name in data}
        check_arguments(Status, known, "")
        found = Status(**known)
    except (OSError, ValueError, TypeError, LorabenchError):
        return Status("queued")
    if found.status == "running" and found.host == socket.gethostname() and not _lives(found.pid, folder):
        return replace(found, status="killed", error="its process is gone")
    return found


def queue(folder: Path, job: Job) -> None:
    """Make a job's folder that of a job that is to run: what an earlier one has found there goes."""
    place = folder / job.folder
    place.mkdir(exist_ok=True)
    replace_file(place / STATUS, f"{to_json({'status': 'queued', 'configuration': job.configuration})}\n")
    (place / RESULTS).unlink(missing_ok=True)  # last: a kill in between leaves a queued job, not one without results


def at_work(folder: Path) -> bool:
    """Whether another process of this machine is at work in a run's folder."""
    status = read_status(folder)
    return status.status == "running" and status.host == socket.gethostname() and status.pid != os.getpid()


def abandon(folder: Path) -> None:
    """Say of a job that has not ended, though its launcher has, that it will not."""
    status = read_status(folder)
    if status.status == "running":
        status = replace(status, status="killed", error="its launcher has ended, and it has not")
    elif status.status == "queued":
        status = replace(status, error="its launcher has ended, and it has not begun")
    else:
        return
    replace_file(folder / STATUS, f"{to_json(asdict(status))}\n")


def _lives(pid: int | None, folder: Path) -> bool:
    """Whether the process that wrote a status is there: one that is younger than what it is to have written is not."""
    try:
        return process_lives(pid, (folder / STATUS).stat().st_mtime + _CLOCKS_S)
    except OSError:
        return False


def process_lives(pid: int | None, began_before: float | int) -> bool:
    """Whether a process of this machine is there, and not a younger one that got the same pid.

    Args:
        pid: its number; None: there is none.
        began_before: when it had begun at the latest, in seconds since 1970.
    """
    import psutil  # few runs are looked at while they run

    try:
        process = psutil.Process(pid or -1)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(process.create_time() < began_before)
    except (psutil.NoSuchProcess, ValueError, OSError):
        return False
    except psutil.AccessDenied:  # another user's
        return True


def write_jobs(folder: Path, jobs: Sequence[Job]) -> None:
    """Write which jobs a sweep has, in their order: results of any other in its folder are no part of it.

    The sweep's id, by which its runs are one group elsewhere, stays that of an earlier sweep into the folder.
    """
    known = _sweep(folder).get("id") or f"{folder.resolve().name}-{secrets.token_hex(3)}"
    replace_file(folder / JOBS, to_json({"id": known, "jobs": [asdict(job) for job in jobs]}, 1))


def sweep_of(job: Path) -> str | None:
    """The id of the sweep that has the run in a folder as one of its jobs; None where there is none."""
    found = _sweep(job.parent)
    return found.get("id") if job.name in found.get("folders", ()) else None


def _sweep(folder: Path) -> dict[str, Any]:
    """Id and folders of the sweep in a folder; nothing where there is none, or what is written of it is damaged."""
    try:
        data = json.loads((folder / JOBS).read_text())
        known = data.get("id")
        return {"id": known if isinstance(known, str) else None, "folders": [job["folder"] for job in data["jobs"]]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def read_jobs(folder: Path) -> list[Job]:
    """The jobs of the sweep in a folder.

    Raises:
        LorabenchError: it has no such list, or a damaged one.
    """
    path = folder / JOBS
    try:
        known = json.loads(path.read_text())["jobs"]
        jobs = [{field.name: job[field.name] for field in fields(Job)} for job in known]
        for job in jobs:
            check_arguments(Job, job, "")
        return [Job(**job) for job in jobs]
    except FileNotFoundError as error:
        raise LorabenchError(f"{folder} has no {JOBS}: it is the folder of no sweep") from error
    except (OSError, ValueError, KeyError, TypeError, LorabenchError) as error:
        raise LorabenchError(f"{path} cannot be read ({error}): run the sweep again into {folder}") from error
