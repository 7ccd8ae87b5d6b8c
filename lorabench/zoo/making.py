"""What the zoos that are trained here have in common: threads that each compute alone, one bar, seeds by name."""

import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Lock

import torch

from lorabench.errors import LorabenchError
from lorabench.progress import bar

__all__ = ["REMEDY", "check_name", "counted", "seeded", "workers"]

REMEDY = "Free some space, or set cache_dir=DIR (or LORABENCH_CACHE) to a roomier place; nothing was kept."
"""What to do where a zoo cannot be written."""

_MOST_WORKERS = 8


def check_name(name: object) -> None:
    """Refuse a name of a zoo that could be no folder's.

    Raises:
        LorabenchError: it has other characters than a name may have.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise LorabenchError(
            f"dataset.name={name}: letters, digits, '_', '-' and '.' are allowed, for it names a folder"
        )


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch may use, each of which computes alone.

    Groups of adapters side by side need no barriers, where an operation split among threads has two: on a busy
    machine that is many times slower. And what comes out does not depend on the number of threads.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(min(threads, _MOST_WORKERS), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        # Torch hands the number that was set last to threads that start later.
        torch.set_num_threads(threads)


@contextmanager
def counted(description: str, total: int) -> Iterator[Callable[[float], None]]:
    """A bar that several threads may advance; one that still does when the phase is over (Ctrl-C, no space) ends."""
    lock, over = Lock(), Event()
    with bar(description, total) as opened:

        def advance(step: float) -> None:
            if over.is_set():
                raise CancelledError
            with lock:
                opened.advance(step)

        try:
            yield advance
        finally:
            over.set()


def seeded(seed: int, name: str) -> torch.Generator:
    """The generator of an adapter, or of whatever has a name: no other has a part in what it draws."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
