"""The queue of the web page's jobs: each is one command of the toolkit, in a process of its own.

All that a queue knows lies in files, and a job's process goes on without its server: another server over the same
folder finds waiting jobs, watches those at work, and learns how those that ended meanwhile did.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.jobs import process_lives
from lorabench.storage import is_neighbour, locked
from lorabench.text import counted
from lorabench.web.job import (
    ANSWER,
    ENDED,
    LOG,
    OUT,
    PROGRESS,
    Job,
    State,
    check_name,
    log_tail,
    made_files,
    make_folder,
    read_jobs,
    read_object,
    remove_folder,
    remove_leftovers,
    size_of,
    write_job,
)
from lorabench.web.processes import launch, signal_group

__all__ = ["Job", "Queue", "State"]

_LOCK = ".queue.lock"
_TICK = 0.5
"""Seconds between two looks at processes that are not this server's own."""
_PATIENCE = 3.0
"""Seconds that a job has to end by itself."""
_CLOCKS = 2.0
"""Seconds by which the system may be off as to when a process began."""
_LOG_MOST = 8 << 20
"""Bytes of a job's log above which it begins anew."""
_LOST = "ended without an answer: killed, or the machine stopped"
_REMEDY = "Free some space: forget jobs that are over."


class Queue:
    """Jobs of several users, a few at work at a time: users take turns, and each one's jobs go first come.

    Args:
        folder: where the jobs lie; one server at a time may start them.
        at_once: most jobs at work.
        most_waiting: most jobs of all users that wait.
        most_of_user: most jobs of one user that wait or are at work.
        program: the package whose commands the jobs are; its `__main__` has `program(name)`, a `frame.Program`.
        memory: bytes that each process of a job may take; None: as many as there are.
    """

    def __init__(
        self, folder: Path, at_once: int = 1, most_waiting: int = 50, most_of_user: int = 20,
        program: str = "lorabench.web", memory: int | None = None,
    ) -> None:  # fmt: skip
        self._folder, self._program, self._memory = folder.absolute(), program, memory
        self._at_once, self._most_waiting, self._most_of_user = at_once, most_waiting, most_of_user
        self._lock = threading.RLock()
        self._jobs = {job.id: job for job in read_jobs(self._folder)}
        self._own: set[str] = set()  # jobs whose process is waited for here
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def add(
        self, user: str, title: str, words: Sequence[str], shown: str, inputs: Sequence[str | Path] = (),
        room: int | None = None, asked: dict[str, Any] | None = None,
    ) -> Job:  # fmt: skip
        """Have a command wait for its turn.

        Args:
            user: who asks.
            title: what it is, for people.
            words: the command and its arguments; relative names of outputs land in the job's `out/`.
            shown: the command as a person would type it.
            inputs: files that it reads, to be kept until it has ended.
            room: bytes that a file which it writes may have; None: any number.
            asked: what the command was made of.

        Raises:
            LorabenchError: too many jobs wait, or the disk takes no more.
        """
        check_name(user, "user")
        with self._lock:
            self._check_room(user)
            last = max((job.made for job in self._jobs.values()), default=0.0)
            made = max(time.time(), last + 1e-6)  # the order stays, whatever becomes of the clock
            job = Job(
                secrets.token_hex(8), user, title, tuple(words), shown, made, inputs=tuple(map(str, inputs)),
                room=room, asked=asked,
            )  # fmt: skip
            with explain_disk_errors(self._folder, _REMEDY):
                make_folder(self._place(job), job)
            self._remember(job)
        return job

    def _check_room(self, user: str) -> None:
        waiting = sum(job.state == "waiting" for job in self._jobs.values())
        if waiting >= self._most_waiting:
            raise LorabenchError(f"{counted(waiting, 'job')} wait already, the most allowed: try again later")
        own = sum(job.user == user and job.state not in ENDED for job in self._jobs.values())
        if own >= self._most_of_user:
            raise LorabenchError(
                f"{counted(own, 'job')} of yours wait or run already, the most allowed: let one end, or cancel one"
            )

    def jobs(self, user: str) -> list[Job]:
        """A user's jobs, newest first."""
        with self._lock:
            return sorted((job for job in self._jobs.values() if job.user == user), key=lambda job: -job.made)

    def job(self, user: str, id: str) -> Job:  # noqa: A002
        """One job of a user.

        Raises:
            LorabenchError: the user has no such job, whether or not others have.
        """
        with self._lock:
            job = self._jobs.get(id)
        if job is None or job.user != user:
            raise LorabenchError("no such job")
        return job

    def cancel(self, user: str, id: str) -> Job:  # noqa: A002
        """Have a job end: one that waits leaves at once, one at work within seconds; one that ended stays as it is.

        Raises:
            LorabenchError: the user has no such job, or the disk takes no more.
        """
        with self._lock, explain_disk_errors(self._folder, _REMEDY):
            job = self.job(user, id)
            if job.state == "waiting":
                return self._change(job, state="cancelled", ended=time.time(), error="cancelled before it began")
            if job.state != "running" or job.stopping is not None:
                return job
            job = self._change(job, stopping=time.time())
            if self._at_work(job):
                signal_group(job.pid, signal.SIGTERM)
            return job

    def answer(self, user: str, id: str) -> dict[str, Any] | None:  # noqa: A002
        """How the command ended: {"code", "text", "data", "error"}; None where it gave no answer, or not yet."""
        return read_object(self._place(self.job(user, id)) / ANSWER)

    def progress(self, user: str, id: str) -> float | None:  # noqa: A002
        """The share of the phase at work that is done, 0 to 1; None where nobody knows."""
        job = self.job(user, id)
        share = (read_object(self._place(job) / PROGRESS) or {}).get("fraction")
        return float(share) if job.state == "running" and isinstance(share, int | float) else None

    def log(self, user: str, id: str) -> str:  # noqa: A002
        """The last mebibyte of what the command said on the way."""
        return log_tail(self._place(self.job(user, id)))

    def files(self, user: str, id: str) -> list[str]:  # noqa: A002
        """Names of the files that it made, each whole, with "/" between folders."""
        return made_files(self._place(self.job(user, id)))

    def file(self, user: str, id: str, name: str) -> Path:  # noqa: A002
        """Where one of `files` lies.

        Raises:
            LorabenchError: the user has no such job, or the job no such file.
        """
        place = self._place(self.job(user, id))
        if name not in made_files(place):  # so nothing is made of a name that somebody thought of
            raise LorabenchError("no such file")
        return place / OUT / name

    def reads(self, folder: Path) -> bool:
        """Whether a job that has not ended reads what lies in a folder."""
        with self._lock:
            active = [job for job in self._jobs.values() if job.state not in ENDED]
        return any(Path(one).is_relative_to(folder) for job in active for one in job.inputs)

    def forget(self, user: str, id: str) -> None:  # noqa: A002
        """Remove a job that has ended, and its files.

        Raises:
            LorabenchError: the user has no such job, it has not ended, another one reads what it made, or it cannot
                be removed.
        """
        with self._lock, explain_disk_errors(self._folder, "Remove it by hand."):
            job = self.job(user, id)
            if job.state not in ENDED:
                raise LorabenchError("the job has not ended: cancel it first")
            if self.reads(self._place(job)):
                raise LorabenchError("another job reads what this one made: let it end, or cancel it")
            with contextlib.suppress(FileNotFoundError):  # somebody did so by hand
                remove_folder(self._place(job))
            del self._jobs[id]

    def forget_older(self, seconds: float | int) -> int:
        """Remove all jobs that ended longer ago; how many they were."""
        with self._lock:
            line = time.time() - seconds
            ended = [job for job in self._jobs.values() if job.state in ENDED and (job.ended or job.made) < line]
            old = [job for job in ended if not self.reads(self._place(job))]
            for job in old:
                self.forget(job.user, job.id)
        return len(old)

    def size(self, user: str) -> int:
        """Bytes that a user's jobs have on the disk."""
        return size_of(self._folder / check_name(user, "user"))

    def start(self) -> None:
        """Begin to run jobs, in a thread.

        Raises:
            LorabenchError: another server does so in this folder.
        """
        if self._thread is not None:
            return
        begun = Future[None]()
        self._stop.clear()
        thread = threading.Thread(target=self._run, args=[begun], name="jobs", daemon=True)
        thread.start()
        begun.result()
        self._thread = thread

    def stop(self) -> None:
        """Begin no more jobs; those at work go on, and another queue over this folder may watch them."""
        if self._thread is not None:
            self._stop.set()
            self._wake.set()
            self._thread.join()
            self._thread = None

    def _run(self, begun: "Future[None]") -> None:
        """All of the thread, which has the lock: a thread that dies lets go of it."""
        busy = f"{self._folder}: another server runs the jobs of this folder. Stop it, or take another folder."
        with contextlib.ExitStack() as stack:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.enter_context(locked(self._folder / _LOCK, "Take another folder.", busy))
                self._look_around()
            except (LorabenchError, OSError) as error:
                begun.set_exception(error)
                return
            begun.set_result(None)
            while not self._stop.is_set():
                self._wake.clear()
                self._turn()
                self._wake.wait(_TICK)

    def _look_around(self) -> None:
        """Learn what became of the jobs since this queue was made; remove what a killed server left."""
        with self._lock:
            self._jobs = {job.id: job for job in read_jobs(self._folder)}
        for path in self._folder.glob("*/.*"):
            if is_neighbour(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _turn(self) -> None:
        with self._lock:
            running = [job for job in self._jobs.values() if job.state == "running"]
            for job in running:
                self._look_at(job)
            while (waiting := self._next()) is not None:
                self._begin(waiting)

    def _next(self) -> Job | None:
        """Who has fewest at work is next, then who had no turn for longest."""
        running = [job for job in self._jobs.values() if job.state == "running"]
        waiting = [job for job in self._jobs.values() if job.state == "waiting"]
        if not waiting or len(running) >= self._at_once:
            return None
        turns: dict[str, float | int] = {}
        for job in self._jobs.values():
            turns[job.user] = max(turns.get(job.user, 0.0), job.started or 0.0)
        at_work = [job.user for job in running]
        return min(waiting, key=lambda job: (at_work.count(job.user), turns[job.user], job.made))

    def _begin(self, job: Job) -> None:
        place = self._place(job)
        try:
            process = launch(place, self._program, self._memory)
            self._own.add(job.id)
            waiter = threading.Thread(target=self._wait_for, args=[job.id, process], name=f"job {job.id}", daemon=True)
            waiter.start()
            with process.stdin or contextlib.nullcontext() as go:
                self._change(job, state="running", started=time.time(), pid=process.pid)
                if go is not None:
                    go.write(b"\n")
        except BrokenPipeError:
            return  # it died at once: the next turn says so
        except OSError as error:
            self._end(job, state="failed", error=f"cannot be started: {error.strerror or error}")

    def _wait_for(self, id: str, process: subprocess.Popen[bytes]) -> None:  # noqa: A002
        """Until the process is over; whatever it left of its group goes too."""
        process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with self._lock:
            self._own.discard(id)
        self._wake.set()

    def _at_work(self, job: Job) -> bool:
        return job.id in self._own or process_lives(job.pid, (job.started or 0.0) + _CLOCKS)

    def _look_at(self, job: Job) -> None:
        """Let a job at work be, within bounds; of one that is over, say how it ended."""
        place = self._place(job)
        if self._at_work(job):
            with contextlib.suppress(OSError):
                if (place / LOG).stat().st_size > _LOG_MOST:  # it is appended to: the file begins anew
                    os.truncate(place / LOG, 0)
            if job.stopping is not None and time.time() - job.stopping > _PATIENCE:
                signal_group(job.pid, signal.SIGKILL)
            return
        with contextlib.suppress(OSError):
            remove_leftovers(place)
        answer = read_object(place / ANSWER)
        if answer is None:
            stopped = job.stopping is not None
            self._end(job, state="cancelled" if stopped else "lost", error="cancelled" if stopped else _LOST)
            return
        code, error = answer.get("code"), answer.get("error")
        if error is not None and (code == 130 or job.stopping is not None):
            # An interruption may come out of an import as any error.
            self._end(job, state="cancelled", code=code, error=error if code == 130 else "cancelled")
            return
        self._end(job, state="failed" if error is not None else "done", code=code, error=error)

    def _end(self, job: Job, **known: Any) -> None:
        """It is over, whether or not that can be written: the next server comes to the same by itself."""
        job = replace(job, ended=time.time(), **known)
        with contextlib.suppress(OSError):
            write_job(self._place(job), job)
        self._remember(job)

    def _change(self, job: Job, **known: Any) -> Job:
        job = replace(job, **known)
        write_job(self._place(job), job)
        self._remember(job)
        return job

    def _remember(self, job: Job) -> None:
        self._jobs[job.id] = job
        self._wake.set()

    def _place(self, job: Job) -> Path:
        return self._folder / job.user / job.id
