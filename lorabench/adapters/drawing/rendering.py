"""Drawing measured pages: in this process, or in others that import matplotlib while this one imports torch."""

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from lorabench.adapters.drawing.kinds import KINDS, kind_module
from lorabench.errors import LorabenchError

__all__ = ["InThisProcess", "Processes", "Renderer"]

Task = tuple[str, Any, Path]
"""A kind, a page of it, and the file to write."""


@runtime_checkable
class Renderer(Protocol):
    """What draws pictures."""

    def render(self, tasks: Iterable[Task]) -> None:
        """Draw and write each.

        Raises:
            LorabenchError: the disk refuses.
        """


class InThisProcess:
    """Draws one picture after the other."""

    def render(self, tasks: Iterable[Task]) -> None:
        """See `Renderer`."""
        from lorabench.pictures import house_style, save_picture

        with house_style():
            for kind, page, path in tasks:
                save_picture(kind_module(kind).draw(page), path)


class Processes:
    """Draws in other processes, which start at once and get ready while this one still reads and measures.

    Args:
        count: how many; None for two, or one where there is but one core.
    """

    def __init__(self, count: int | None = None) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads' locks
        self._idle: list[Connection] = []
        for _ in range(count or min(2, len(os.sched_getaffinity(0)))):
            here, there = context.Pipe()
            context.Process(target=_serve, args=(there,), daemon=True).start()
            there.close()
            self._idle.append(here)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._idle:
            pipe.close()

    def render(self, tasks: Iterable[Task]) -> None:
        """See `Renderer`."""
        waiting, busy = iter(tasks), list[Connection]()
        task = next(waiting, None)
        while task or busy:
            while task and self._idle:
                pipe = self._idle.pop()
                pipe.send(task)
                busy.append(pipe)
                task = next(waiting, None)  # which may be measured only now, while others are drawn
            ready = wait(busy)
            for pipe in [pipe for pipe in busy if pipe in ready]:
                busy.remove(pipe)
                self._idle.append(pipe)
                problem = _answer(pipe)
                if problem:
                    raise LorabenchError(problem)


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
    for kind in KINDS:
        kind_module(kind)
    _get_ready()
    gc.freeze()  # what is imported stays, and pictures make many objects that only look like garbage
    gc.set_threshold(50_000)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            InThisProcess().render([task])
            pipe.send("")
        except LorabenchError as error:
            pipe.send(str(error))


def _get_ready() -> None:
    """Import and look up all that a first picture needs, by drawing one for nobody."""
    from lorabench.adapters.drawing.panels import log_axis, new_figure, words_instead
    from lorabench.pictures import house_style, picture_bytes

    with house_style():
        figure = new_figure(3, 2, "ΔW")
        left, right = figure.subplots(1, 2)
        figure.colorbar(left.imshow([[0, 1]]), ax=left)
        left.set_ylim(1, 10)
        log_axis(left, "y")
        words_instead(right, "0123456789")
        picture_bytes(figure, Path("nowhere.png"))
