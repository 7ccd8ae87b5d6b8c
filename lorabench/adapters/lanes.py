"""Modules side by side, each on one thread: many threads for one small product only wait for each other."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from lorabench.lanes import one_thread_an_operation

__all__ = ["in_lanes"]

Task = TypeVar("Task")
Found = TypeVar("Found")


def in_lanes(function: Callable[[Task], Found], tasks: Iterable[Task], lanes: int | None = None) -> list[Found]:
    """What a function makes of every task, in order.

    Args:
        function: of one task; torch has one thread within it.
        tasks: any number.
        lanes: how many at a time; None: as many as torch has threads.
    """
    width = lanes or torch.get_num_threads()
    with one_thread_an_operation(), ThreadPoolExecutor(width, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(function, tasks))
