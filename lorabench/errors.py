"""Errors whose message is all that the user needs to see."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LorabenchError", "explain_disk_errors"]

_LONGEST = 4000


class LorabenchError(Exception):
    """A mistake of the user's or an input that cannot be used.

    The message names the argument or file, what came, what is allowed and what to do next. Entry points print
    it without a traceback. What it quotes may come from anybody's file, so the message is made one line that a
    terminal can show: control characters are escaped, and the middle of a very long one is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


@contextmanager
def explain_disk_errors(path: Path, remedy: str) -> Iterator[None]:
    """Turn the operating system's refusal to write below `path` into one clear message.

    Raises:
        LorabenchError: the disk is full, the quota is used up, or the place may not be written to.
    """
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "permission denied",
            errno.EPERM: "permission denied",
            errno.EROFS: "the file system is read-only",
            errno.ENOTDIR: "a part of this path is a file",
            errno.EEXIST: "a part of this path is a file",
        }
        if error.errno not in reasons:
            raise
        raise LorabenchError(f"cannot write {path}: {reasons[error.errno]}. {remedy}") from error


def _one_line(message: str) -> str:
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
    if message.isprintable():
        return message
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)
