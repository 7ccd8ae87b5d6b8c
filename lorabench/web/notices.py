"""What a user's jobs came to, and which of it he has looked at; it outlives the page and the server."""

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from lorabench.storage import replace_file
from lorabench.text import to_json
from lorabench.web.job import read_object
from lorabench.web.queue import Job, Queue, State

__all__ = ["TOLD", "Notices"]

TOLD: tuple[State, ...] = ("done", "failed", "lost")
"""Ends that a user is told of; what he cancelled he knows."""


class Notices:
    """Of all users. A notice is a job that has ended, and goes with it; what was looked at stands in a file.

    Args:
        path: of that file.
        queue: whose jobs they are.
    """

    def __init__(self, path: Path, queue: Queue) -> None:
        self._path, self._queue, self._lock = path, queue, threading.Lock()
        self._seen: dict[str, Any] = read_object(path) or {}

    def of(self, user: str) -> list[Job]:
        """A user's jobs that have ended, the last one first."""
        ended = [job for job in self._queue.jobs(user) if job.state in TOLD]
        return sorted(ended, key=_when, reverse=True)

    def unread(self, user: str) -> list[Job]:
        """Those that he has not looked at."""
        until, jobs = self._seen_by(user)
        return [job for job in self.of(user) if _when(job) > until and job.id not in jobs]

    def read(self, user: str, job: Job | None = None) -> None:
        """He has looked at one, or at the whole list.

        Args:
            user: who.
            job: the one; None: all that there are.
        """
        with self._lock:
            until, jobs = self._seen_by(user)
            self._seen[user] = [time.time(), []] if job is None else [until, [*jobs, job.id]]
            with contextlib.suppress(OSError):  # it is told once more
                replace_file(self._path, to_json(self._seen), durable=False)

    def _seen_by(self, user: str) -> tuple[float, list[str]]:
        """Until when he has looked at all, and what he has looked at since."""
        match self._seen.get(user):
            case [int() | float() as until, list() as jobs]:
                return float(until), jobs
        return 0.0, []


def _when(job: Job) -> float:
    return job.ended or job.made
