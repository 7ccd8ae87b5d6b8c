"""Progress bars: one a phase, shown only where someone watches and the phase lasts over two seconds."""

import importlib.util
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich import console, progress

__all__ = ["Bar", "bar", "track"]

T = TypeVar("T")
_PATIENCE_SECONDS = 2.0


def Console(stderr: bool) -> "console.Console | None":  # noqa: N802
    """rich's, where a bar can be shown; rich is imported there alone, and nothing is shown where it is missing."""
    if not (sys.stderr.isatty() and importlib.util.find_spec("rich")):
        return None
    from rich.console import Console as Screen

    return Screen(stderr=stderr)


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
        self._progress: progress.Progress | None = None

    def __enter__(self) -> "Bar":
        if self._console is not None:
            # A phase of one long step shows a bar too.
            self._timer = threading.Timer(_PATIENCE_SECONDS, self.advance, [0])
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            if self._progress is not None:
                self._progress.stop()

    def advance(self, step: int | float = 1, note: str = "") -> None:
        """Add `step` to what is done; `note` is shown behind the description. Any thread may call."""
        with self._lock:
            self._advance(step, note)

    def _advance(self, step: float | int, note: str) -> None:
        self._done += step
        late = time.monotonic() - self._started >= _PATIENCE_SECONDS
        if self._progress is None and late and not self._closed and self._console is not None:
            self._progress = _drawn_on(self._console)
            self._progress.start()
            self._progress.add_task(self._description, total=self._total)
        if self._progress is not None:
            task = self._progress.task_ids[0]
            text = f"{self._description} {note}".rstrip()
            self._progress.update(task, completed=self._done, description=text)


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
    )


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
