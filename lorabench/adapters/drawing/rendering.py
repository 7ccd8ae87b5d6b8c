"""Drawing measured pages: in this process, or in others that import matplotlib while this one imports torch."""

import contextlib
import importlib
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lorabench.adapters.drawing.kinds import kind_module
from lorabench.errors import LorabenchError

__all__ = ["InThisProcess", "Picture", "Processes", "Renderer"]

_READY, _SAFE = "lorabench.adapters.drawing.ready", "PYTHONSAFEPATH"


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

    Args:
        count: how many; None for two, or one where there is but one core.
    """

    def __init__(self, count: int | None = None) -> None:
        count = count or min(2, len(os.sched_getaffinity(0)))
        pool = ThreadPoolExecutor(1)  # a start ends when the process is ready, which is not waited for here
        self._starting = pool.submit(_start, count)
        pool.shutdown(wait=False)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, EOFError):  # where they never came there is nothing to end
            for pipe in self._starting.result():
                pipe.close()

    def _ready(self) -> list[Connection]:
        try:
            return self._starting.result().copy()
        except (OSError, EOFError) as error:
            raise LorabenchError(
                f"no process that draws can be started: {error}. Draw one --kind at a time."
            ) from error

    def render(self, pictures: Iterable[Picture]) -> None:
        """See `Renderer`."""
        waiting, busy, idle = iter(pictures), list[Connection](), self._ready()
        picture = next(waiting, None)
        while picture or busy:
            while picture and idle:
                pipe = idle.pop()
                pipe.send(picture)
                busy.append(pipe)
                picture = next(waiting, None)  # which may be measured only now, while others are drawn
            ready = wait(busy)
            for pipe in [pipe for pipe in busy if pipe in ready]:
                busy.remove(pipe)
                idle.append(pipe)
                problem = _answer(pipe)
                if problem:
                    raise LorabenchError(problem)


def _start(count: int) -> list[Connection]:
    """Processes that draw, each at the other end of a pipe."""
    # A fork of this process would copy the locks of torch's threads; a process of its own is forked instead, which
    # has imported matplotlib once for all.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_READY])
    pipes = []
    # Ctrl-C is for the process that asks, and says so; what this thread starts inherits that it is held back here.
    resource_tracker.ensure_running()  # first: it starts with that, and it lets the signal through when it has
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with _no_modules_of_the_folder():
        for _ in range(count):
            here, there = context.Pipe()
            context.Process(target=_serve, args=(there,), daemon=True).start()
            there.close()
            pipes.append(here)
    return pipes


@contextlib.contextmanager
def _no_modules_of_the_folder() -> Iterator[None]:
    """Python's processes that start meanwhile import nothing of the folder that they are in: it may be anybody's.

    The process that is forked from is one of `python -c`, which would look there first.
    """
    before = os.environ.get(_SAFE)
    os.environ[_SAFE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE]
        else:
            os.environ[_SAFE] = before


def _answer(pipe: Any) -> str:
    try:
        return str(pipe.recv())
    except EOFError:
        return (
            "a process that draws ended before its picture was done: there may be too little memory. "
            "Draw one --kind at a time."
        )


def _serve(pipe: Connection) -> None:
    """Draw what comes through the pipe until it closes; the answer is what is wrong, or nothing."""
    importlib.import_module(_READY)  # nothing is left to do where the process that this one is forked from has done it
    while True:
        try:
            picture = pipe.recv()
        except EOFError:
            return
        try:
            InThisProcess().render([picture])
            pipe.send("")
        except LorabenchError as error:
            pipe.send(str(error))
