"""What `rendering.Processes` start: one process that imports all that a picture needs, and forks those that draw."""

import gc
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from lorabench.adapters.drawing.kinds import KINDS, kind_module
from lorabench.adapters.drawing.panels import log_axis, new_figure, words_instead
from lorabench.adapters.drawing.rendering import InThisProcess
from lorabench.errors import LorabenchError
from lorabench.pictures import house_style, picture_bytes

__all__ = ["draw"]


def draw(pipes: Sequence[int]) -> None:
    """Draw what comes through each of these pipes until it closes, each in a process of its own.

    Args:
        pipes: numbers of open files; a `rendering.Picture` comes, and the answer is what is wrong, or nothing.
    """
    _get_ready()
    children = []
    for number in pipes:
        child = os.fork()
        if child == 0:
            for other in pipes:
                if other != number:  # or nobody would see that who reads it is gone
                    os.close(other)
            _serve(Connection(number))
            os._exit(0)
        children.append(child)
    for number in pipes:
        os.close(number)
    for child in children:
        os.waitpid(child, 0)


def _get_ready() -> None:
    """Import and look up all that a first picture needs, by drawing one for nobody."""
    for kind in KINDS:
        kind_module(kind)
    with house_style():
        figure = new_figure(3, 2, "ΔW")
        left, right = figure.subplots(1, 2)
        figure.colorbar(left.imshow([[0, 1]]), ax=left)
        left.set_ylim(1, 10)
        log_axis(left, "y")
        words_instead(right, "0123456789")
        picture_bytes(figure, Path("nowhere.png"))
    gc.freeze()  # what is imported stays, and pictures make many objects that only look like garbage
    gc.set_threshold(50_000)


def _serve(pipe: Connection) -> None:
    while True:
        try:
            picture = pipe.recv()
        except EOFError:
            return
        try:
            InThisProcess().render([picture])
            problem = ""
        except LorabenchError as error:
            problem = str(error)
        try:
            pipe.send(problem)
        except BrokenPipeError:  # who asked is gone
            return
