"""What the zoos that are trained here have in common: stores made once, threads that compute alone, seeds by name."""

import hashlib
import importlib.metadata
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import Annotated

import torch

from lorabench.errors import LorabenchError
from lorabench.options import Above, AtLeast, AtMost, OneOf
from lorabench.progress import bar
from lorabench.storage import locked
from lorabench.zoo.store import Zoo

__all__ = [
    "REMEDY", "Count", "Init", "OwnSeed", "Rate", "Seed", "check_name", "counted", "hash_of", "made_once", "own_seed",
    "seeded", "workers",
]  # fmt: skip

Count = Annotated[int, AtLeast(1)]
Init = Annotated[str, OneOf(["shared", "independent"])]
Rate = Annotated[float | int, Above(0)]
Seed = Annotated[int, AtLeast(0), AtMost(2**63 - 1)]
OwnSeed = Annotated[int | None, AtLeast(0), AtMost(2**63 - 1)]
"""Of a part of what a zoo draws; None: the zoo's seed, of which the choice of leaves always is."""

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


def hash_of(parts: object, files: Iterable[str | None], packages: Sequence[str]) -> str:
    """A hash of what a zoo is made of, of the code that makes it, and of the packages that it stands on.

    Args:
        parts: whose `repr` says all that the adapters depend on.
        files: of the modules that make them.
        packages: by name; their versions count.
    """
    code = [Path(str(file)).read_bytes() for file in (__file__, *files)]
    versions = [importlib.metadata.version(package) for package in packages]
    return hashlib.sha256(repr((parts, code, versions)).encode()).hexdigest()[:16]


def made_once(
    path: Path, lock: Path, opened: Callable[[], Zoo | None], build: Callable[[ThreadPoolExecutor], None]
) -> Zoo:
    """The zoo that `opened` finds, made by one process while others wait.

    Args:
        path: of its store.
        lock: a file that those who would make it agree on.
        opened: the zoo, or None where it is not there whole.
        build: makes it, by workers.

    Raises:
        LorabenchError: it was made, and is not there.
    """
    zoo = opened()
    if zoo is not None:
        return zoo
    with locked(lock, REMEDY):
        zoo = opened()
        if zoo is None:
            # The caller's inference mode is not ours: its tensors could not be trained with.
            with torch.inference_mode(False), workers() as pool:
                build(pool)
            zoo = opened()
    if zoo is None:
        raise LorabenchError(f"{path} was changed while the zoo was written. Start again.")
    return zoo


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


def own_seed(seed: int, of_part: int | None) -> int:
    """The seed of a part of what a zoo draws: see `OwnSeed`."""
    return seed if of_part is None else of_part


def seeded(seed: int, name: str) -> torch.Generator:
    """The generator of an adapter, or of whatever has a name: no other has a part in what it draws."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
