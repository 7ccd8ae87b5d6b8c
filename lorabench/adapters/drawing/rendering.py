"""Drawing measured pages: in this process, or in others that import matplotlib while this one imports torch."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lorabench.adapters.drawing.kinds import kind_module
from lorabench.errors import LorabenchError

__all__ = ["InThisProcess", "Picture", "Processes", "Renderer"]

# What they are told to be: a module of its own, so that one of them imports nothing but what it draws with.
_DRAWERS = (
    "import sys; n = int(sys.argv[1]); sys.path[:] = sys.argv[2 + n:]; "
    "from lorabench.adapters.drawing.drawers import draw; draw([int(fd) for fd in sys.argv[2:2 + n]])"
)


class Picture(NamedTuple):
    """A kind, a page of it, and the file to write.

    It stands here, where torch is not imported: a process that draws imports whatever the class that it gets is from.
    """

    kind: str
    page: Any
    path: Path


@runtime_checkable
class Renderer(Protocol):
    """What draws pictures."""

    def render(self, pictures: Iterable[Picture]) -> None:
        """Draw and write each.

        Raises:
            LorabenchError: the disk refuses.
        """


class InThisProcess:
    """Draws one picture after the other."""

    def render(self, pictures: Iterable[Picture]) -> None:
        """See `Renderer`."""
        from lorabench.pictures import house_style, save_picture

        with house_style():
            for kind, page, path in pictures:
                save_picture(kind_module(kind).draw(page), path)


class Processes:
    """Draws in other processes, which start at once and get ready while this one still reads and measures.

    They are no processes of `multiprocessing`, which has one to fork from for all that a program does, would import the
    program's own file in each of them, and would hand on to all later ones what these need: that Ctrl-C is not theirs.

    Args:
        count: how many; None for two, or one where there is but one core.

    Raises:
        LorabenchError: the system has no room for them.
    """

    def __init__(self, count: int | None = None) -> None:
        self._pipes, theirs = list[Connection](), list[Connection]()
        try:
            for _ in range(count or min(2, len(os.sched_getaffinity(0)))):
                here, there = Pipe()
                self._pipes.append(here)
                theirs.append(there)
            numbers = [there.fileno() for there in theirs]
            words = [sys.executable, "-P", "-c", _DRAWERS, str(len(numbers)), *map(str, numbers), *map(str, sys.path)]
            # In a session of its own: Ctrl-C is for the process that asks, and says so.
            self._process = subprocess.Popen(words, pass_fds=numbers, start_new_session=True, stdin=subprocess.DEVNULL)  # noqa: S603 - our own words
        except OSError as error:
            for pipe in self._pipes:
                pipe.close()
            raise LorabenchError(
                f"no process that draws can be started: {error}. Draw one --kind at a time."
            ) from error
        finally:
            for there in theirs:
                there.close()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        with contextlib.suppress(ProcessLookupError):  # nobody waits for what they still draw, or still import
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()

    def render(self, pictures: Iterable[Picture]) -> None:
        """See `Renderer`."""
        waiting, busy, idle = iter(pictures), list[Connection](), self._pipes.copy()
        picture = next(waiting, None)
        while picture or busy:
            while picture and idle:
                pipe = idle.pop()
                _send(pipe, picture)
                busy.append(pipe)
                picture = next(waiting, None)  # which may be measured only now, while others are drawn
            ready = wait(busy)
            for pipe in [pipe for pipe in busy if pipe in ready]:
                busy.remove(pipe)
                idle.append(pipe)
                problem = _answer(pipe)
                if problem:
                    raise LorabenchError(problem)


def _send(pipe: Connection, picture: Picture) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # which asking for its answer will tell
        pipe.send(picture)


def _answer(pipe: Connection) -> str:
    try:
        return str(pipe.recv())
    except (EOFError, ConnectionResetError):
        return (
            "a process that draws ended before its picture was done: there may be too little memory. "
            "Draw one --kind at a time."
        )
