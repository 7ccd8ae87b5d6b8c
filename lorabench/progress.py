"""Progress bars: one a phase, shown only where someone watches and the phase lasts over two seconds.

A phase within another shows its bar below the other's. Who shows it otherwise than on a terminal asks by `watched`.
"""

import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich import console, progress

__all__ = ["Bar", "bar", "track", "watched"]

T = TypeVar("T")
_PATIENCE_SECONDS = 2.0


def Console(stderr: bool) -> "console.Console | None":  # noqa: N802
    """rich's, where a bar can be shown; rich is imported there alone, and nothing is shown where it is missing."""
    if not (sys.stderr.isatty() and importlib.util.find_spec("rich")):
        return None
    from rich.console import Console as Screen

    return Screen(stderr=stderr)


class _Display:
    """All bars that are shown at one time, below each other: a terminal has room for one live display."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._progress: progress.Progress | None = None

    def add(self, screen: "console.Console", description: str, total: int | float | None) -> "progress.TaskID":
        """Show one more."""
        with self._lock:
            if self._progress is None:
                self._progress = _drawn_on(screen)
                self._progress.start()
            return self._progress.add_task(description, total=total)

    def update(self, task: "progress.TaskID", done: float | int, description: str) -> None:
        """Show how far one is."""
        with self._lock:
            if self._progress is not None:
                self._progress.update(task, completed=done, description=description)

    def remove(self, task: "progress.TaskID") -> None:
        """One is over; the last one stays to be read."""
        with self._lock:
            if self._progress is None:
                return
            if len(self._progress.task_ids) > 1:
                self._progress.remove_task(task)
            else:
                self._progress.stop()
                self._progress = None


_DISPLAY = _Display()


class _Watch:
    """Who is told of the outermost phase whose end is known: phases within it would go back and forth."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phase: Bar | None = None
        self.tell: Callable[[float | int], None] | None = None

    def advanced(self, phase: "Bar", share: float | int) -> None:
        """Tell of a phase, if it is the one."""
        with self._lock:
            if self.tell is None:
                return
            if self._phase is None:
                self._phase = phase
            if self._phase is phase:
                self.tell(min(share, 1.0))

    def ended(self, phase: "Bar") -> None:
        """The next one may be told of."""
        with self._lock:
            if self._phase is phase:
                self._phase = None


_WATCH = _Watch()


class Bar:
    """A progress bar that appears after two seconds, on a terminal only, on standard error."""

    def __init__(self, description: str, total: int | float | None) -> None:
        self._description = description
        self._total = total
        self._done = 0.0
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._closed = False
        self._started = time.monotonic()
        found = Console(stderr=True)
        self._console = found if found is not None and found.is_terminal else None
        self._task: progress.TaskID | None = None

    def __enter__(self) -> "Bar":
        if self._total:
            _WATCH.advanced(self, 0.0)
        if self._console is not None:
            # A phase of one long step shows a bar too.
            self._timer = threading.Timer(_PATIENCE_SECONDS, self.advance, [0])
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _WATCH.ended(self)
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            if self._task is not None:
                _DISPLAY.remove(self._task)

    def advance(self, step: int | float = 1, note: str = "") -> None:
        """Add `step` to what is done; `note` is shown behind the description. Any thread may call."""
        with self._lock:
            self._advance(step, note)

    def _advance(self, step: float | int, note: str) -> None:
        self._done += step
        if self._total and not self._closed:
            _WATCH.advanced(self, self._done / self._total)
        late = time.monotonic() - self._started >= _PATIENCE_SECONDS
        if self._task is None and late and not self._closed and self._console is not None:
            self._task = _DISPLAY.add(self._console, self._description, self._total)
        if self._task is not None:
            _DISPLAY.update(self._task, self._done, f"{self._description} {note}".rstrip())


def _drawn_on(screen: "console.Console") -> "progress.Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=screen,
        redirect_stdout=sys.stdout.isatty(),  # what goes into a file or a pipe is no business of the terminal
    )


@contextmanager
def watched(tell: Callable[[float | int], None]) -> Iterator[None]:
    """Tell somebody, for as long as this is open, what share of the outermost phase is done; terminals or none.

    Args:
        tell: called with 0 to 1 from whatever thread advances a bar; every phase begins at 0 again.
    """
    _WATCH.tell = tell
    try:
        yield
    finally:
        _WATCH.tell = None


@contextmanager
def bar(description: str, total: int | float | None = None) -> Iterator[Bar]:
    """Open a `Bar` for a phase of `total` steps."""
    with Bar(description, total) as opened:
        yield opened


def track(items: Iterable[T], description: str) -> Iterator[T]:
    """Iterate over `items` under a bar."""
    total = len(items) if isinstance(items, Sized) else None
    with bar(description, total) as opened:
        for item in items:
            yield item
            opened.advance()
