"""The machine: independent pieces of work side by side on a CPU, each one thread wide, and memory."""

import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

__all__ = [
    "free_memory",
    "in_lanes",
    "keep_to_allotted_cpus",
    "map_in_lanes",
    "one_thread_an_operation",
    "read_ahead",
    "recycle_freed_blocks",
]

Task = TypeVar("Task")
Result = TypeVar("Result")
_READ_AHEAD = 2**17  # bytes; so much the system reads ahead by itself
_BYTES = 31 * 2**20  # glibc's adaptive threshold ends at 32 MiB (mallopt(3), M_MMAP_THRESHOLD)


def keep_to_allotted_cpus() -> None:
    """Torch, and with it all lanes, take no more threads than SLURM has given this task CPUs.

    Where SLURM binds its tasks torch knows by itself (by the CPU affinity); many a SLURM does not bind them.
    """
    allotted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if allotted.isdecimal() and 0 < int(allotted) < torch.get_num_threads():
        torch.set_num_threads(int(allotted))


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Torch's operations take one thread each; it is left as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_lanes(
    tasks: Sequence[Task], work: Callable[[Task, threading.Event], Result], lanes: int
) -> Generator[Result, None, None]:
    """What `work` makes of every task, as they finish.

    Many threads for one small product only wait for each other; whole tasks side by side do not.

    Args:
        tasks: what is to do; a lane that is free takes the next.
        work: does it, in a thread of its own; the event is set when it should give up, since nobody waits any more.
        lanes: how many at once.
    """
    stopped = threading.Event()
    width = max(1, min(lanes, len(tasks)))
    with one_thread_an_operation(), ThreadPoolExecutor(width, initializer=torch.set_num_threads, initargs=(1,)) as pool:
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


def map_in_lanes(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    lanes: int | None = None,
    done: Callable[[], object] = lambda: None,
) -> list[Result]:
    """What a function makes of every task, in their order.

    Args:
        function: of one task; torch has one thread within it.
        tasks: any number.
        lanes: how many at once; None: as many as torch has threads.
        done: called after each.

    >>> map_in_lanes(abs, [-3, 2, -1], lanes=2)
    [3, 2, 1]
    """

    def work(numbered: tuple[int, Task], _stopped: threading.Event) -> tuple[int, Result]:
        return numbered[0], function(numbered[1])

    results = {}
    for number, result in in_lanes(list(enumerate(tasks)), work, lanes or torch.get_num_threads()):
        results[number] = result
        done()
    return [results[number] for number in range(len(results))]


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on a device."""
    if device.type == "cuda":
        # What torch holds and does not use is free for torch.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    import psutil  # here, not above: only what asks for memory needs it

    return int(psutil.virtual_memory().available)


def recycle_freed_blocks() -> None:
    """Have blocks of megabytes reused rather than returned to the system and faulted in again, page by page.

    glibc maps large blocks one by one and unmaps them as they are freed, until it has seen a larger one freed; from
    then on it recycles them. One untouched block does that. Measured: a fifth of the time of batched features, a
    quarter of that of stacked members. Elsewhere this does nothing.
    """
    torch.empty(_BYTES, dtype=torch.uint8)


def read_ahead(values: np.ndarray) -> None:
    """Have the system read what an array maps of a file, all of it at once, before it is looked at.

    Page by page, as it is touched, a map gives a fraction of what the disk does (measured: 0.1 to 0.3 GB a second, and
    0.4 to 0.55 with this, where plain reads gave 0.2 to 0.3). Of memory without a file nothing is read, and where the
    system has no such call this does nothing.
    """
    if not hasattr(mmap, "MADV_WILLNEED") or values.nbytes <= _READ_AHEAD:
        return
    first = values.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = values.ctypes.data + values.nbytes - first
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_WILLNEED)
