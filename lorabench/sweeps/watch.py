"""A line for every job of a sweep that ends and an overall bar, with the time left; whichever launcher runs them."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lorabench.jobs import Job, Status, read_status
from lorabench.progress import Bar, bar

__all__ = ["watched"]

_EVERY = 0.5  # seconds between looks at the jobs' status.json
_ENDED = ("done", "failed", "interrupted", "killed")


class _Watch:
    """What has been said of which job."""

    def __init__(self, folder: Path, jobs: Sequence[Job], shown: Bar) -> None:
        self._folder, self._jobs, self._bar = folder, jobs, shown
        self._said: dict[str, str] = {}  # folder -> how it has ended; SLURM may let it go on all the same
        self._started = time.monotonic()
        self._before = 0
        for job in jobs:
            if read_status(folder / job.folder).status == "done":
                self._say(job, "done", "done before")
        self._before = len(self._said)

    def look(self) -> None:
        """Say what has ended since the last look."""
        for job in self._jobs:
            if self._said.get(job.folder) != "done":
                status = read_status(self._folder / job.folder)
                if status.status in _ENDED and status.status != self._said.get(job.folder):
                    self._say(job, status.status, _words(status))

    def _say(self, job: Job, how: str, words: str) -> None:
        self._bar.advance(int(job.folder not in self._said))
        self._said[job.folder] = how
        count, total = len(self._said), len(self._jobs)
        now = count - self._before
        left = (time.monotonic() - self._started) / now * (total - count) if now and words != "done before" else 0
        more = f", about {_duration(left)} left" if left else ""
        sys.stdout.write(f"[{count}/{total}] {job.name}: {words}{more}\n")
        sys.stdout.flush()


@contextmanager
def watched(folder: Path, jobs: Sequence[Job]) -> Iterator[None]:
    """Say a line for every job that ends while the block runs; jobs that are done already come first."""
    with bar("Jobs", len(jobs)) as shown:
        watch, stop = _Watch(folder, jobs, shown), threading.Event()

        def look() -> None:
            while not stop.wait(_EVERY):
                watch.look()

        thread = threading.Thread(target=look, name="sweep", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            watch.look()


def _words(status: Status) -> str:
    took = f" after {_duration(status.seconds)}" if status.seconds is not None else ""
    return f"{status.status}{took}" + (f" ({status.error})" if status.error else "")


def _duration(seconds: float | int) -> str:
    """A time for people.

    >>> _duration(12.3), _duration(200), _duration(9000)
    ('12 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
