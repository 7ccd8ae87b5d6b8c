"""Drawing measured pages: in this process, or in others that import matplotlib while this one imports torch."""

import importlib
import multiprocessing
import os
import signal
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lorabench.adapters.drawing.kinds import kind_module
from lorabench.errors import LorabenchError

__all__ = ["InThisProcess", "Picture", "Processes", "Renderer"]

_READY = "lorabench.adapters.drawing.ready"


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
        for pipe in self._starting.result():
            pipe.close()

    def render(self, pictures: Iterable[Picture]) -> None:
        """See `Renderer`."""
        waiting, busy, idle = iter(pictures), list[Connection](), self._starting.result().copy()
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
    for _ in range(count):
        here, there = context.Pipe()
        context.Process(target=_serve, args=(there,), daemon=True).start()
        there.close()
        pipes.append(here)
    return pipes


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks says that it was interrupted
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
