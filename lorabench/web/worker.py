"""`python -m lorabench.web.worker JOBFOLDER [PROGRAM [BYTES]]`: the process of one job, which runs its command.

It begins when its standard input gives a byte, which says that its pid is written down: a server that dies before
that leaves no job behind that nobody can end. It works in the job's `out/`, and writes `answer.json` at its end.
"""

import contextlib
import importlib
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from lorabench.commands.frame import Answer
from lorabench.progress import watched
from lorabench.storage import replace_file
from lorabench.text import to_json
from lorabench.web.job import ANSWER, BROKEN, JOB, PROGRESS, read_object

__all__ = ["main"]

_EVERY = 0.5
"""Seconds between two writes of the progress."""
_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "can't start new thread")
_BUG = "an error inside lorabench, see log"


class _Progress:
    """Writes how far a job is: seldom, and whether or not the disk takes it."""

    def __init__(self, path: Path) -> None:
        self._path, self._last, self._lock = path, 0.0, threading.Lock()

    def __call__(self, share: float | int) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._last < _EVERY:
                return
            self._last = now
            with contextlib.suppress(OSError):
                replace_file(self._path, to_json({"fraction": share}), durable=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of a job.

    Args:
        argv: the job's folder, the package of the program whose command it is, and the bytes of memory that each of
            its processes may take; None: what the process got.

    Returns:
        The command's exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    folder, package = Path(words[0]), words[1] if len(words) > 1 else "lorabench.web"
    if not sys.stdin.buffer.read(1):
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):  # both, or a shell's background job never hears the first
        signal.signal(number, _interrupt)
    memory = int(words[2]) if len(words) > 2 else None
    if memory is not None:  # what is mapped from files to be read is not counted, and adapters are
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    with _answering(folder, memory) as answer:
        job = read_object(folder / JOB) or {}
        if isinstance(room := job.get("room"), int):  # a write beyond it fails, as on a disk that is full
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        program = importlib.import_module(f"{package}.__main__").program(f"lorabench {package.rpartition('.')[2]}")
        with watched(_Progress(folder / PROGRESS)):
            ended: Answer = program.ask([*job["words"], "--json"])
        answer(ended)
    return ended.code


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _answering(folder: Path, memory: int | None) -> Iterator[Callable[[Answer], None]]:
    """Give a way to answer; where that is not used, what ended the command is the answer, and goes on to the log."""

    def write(code: int, error: str | None, text: str | None = None, data: Any = None) -> None:
        known = {"code": code, "text": text, "data": data, "error": error}
        replace_file(folder / ANSWER, to_json(known))

    def answer(ended: Answer) -> None:
        outcome = ended.outcome
        if outcome is None:
            write(ended.code, ended.error)
        else:
            write(ended.code, None, outcome.text, outcome.data)

    try:
        yield answer
    finally:
        error = sys.exception()
        if isinstance(error, KeyboardInterrupt):
            write(130, "interrupted")
        elif isinstance(error, SystemExit):
            write(2, "this is help for terminals, and no command")
        elif memory is not None and _is_of_memory(error):
            write(1, f"it needs more memory than the {memory / 2**20:g} MiB that a job may take here (--job-memory)")
        elif error is not None:
            write(BROKEN, _BUG)


def _is_of_memory(error: BaseException | None) -> bool:
    """Whether it, or what it came from, says that no more memory is given; torch has words of its own for that."""
    while error is not None:
        if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    sys.exit(main())
