"""Independent pieces of work side by side on a CPU, each one thread wide."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = ["in_lanes", "one_thread_an_operation"]

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Torch's operations take one thread each; it is left as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_lanes(tasks: Sequence[T], work: Callable[[T, threading.Event], R], lanes: int) -> Generator[R, None, None]:
    """What `work` makes of every task, as they finish.

    Args:
        tasks: what is to do; a lane that is free takes the next.
        work: does it, in a thread of its own; the event is set when it should give up, since nobody waits any more.
        lanes: how many at once.
    """
    stopped = threading.Event()
    with one_thread_an_operation(), ThreadPoolExecutor(max(1, min(lanes, len(tasks)))) as pool:
        pending = {pool.submit(work, task, stopped) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            stopped.set()  # an error, an interruption, or a caller that wants no more
            for future in pending:
                future.cancel()
