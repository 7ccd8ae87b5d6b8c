"""Errors whose message is all that the user needs to see."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LorabenchError", "explain_disk_errors", "explain_writing"]

_LONGEST = 4000
_FULL, _QUOTA = "the disk is full", "the disk quota is used up"
_FREE = re.compile(r"^Free some space,? or (\w)")


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

    For code that reads as well: errors that may come of reading, such as a file that is not there, pass.

    Args:
        path: what is written.
        remedy: what to do; a "Free some space or" at its start is left out where space is not what lacks.

    Raises:
        LorabenchError: the disk is full, the quota is used up, or the place may not be written to.
    """
    try:
        yield
    except OSError as error:
        reason = _reasons().get(error.errno or 0)
        if reason is None:
            raise
        raise _refusal(path, reason, remedy) from error


@contextmanager
def explain_writing(path: Path, remedy: str) -> Iterator[None]:
    """The same for code that does nothing but write: no error of the operating system's passes.

    Raises:
        LorabenchError: `path` cannot be written to, for whatever reason.
    """
    try:
        yield
    except OSError as error:
        of_writing = {
            errno.EISDIR: "a folder lies there",
            errno.ENOENT: "nothing can be made there",  # the folder was made before: this is /proc and its like
        }
        known = _reasons() | of_writing
        reason = known.get(error.errno or 0) or (os.strerror(error.errno) if error.errno else str(error))
        raise _refusal(path, reason, remedy) from error
    except ValueError as error:
        if "\0" not in str(path):
            raise
        raise _refusal(path, "the name holds a NUL character", remedy) from error


def _reasons() -> dict[int, str]:
    return {
        errno.ENOSPC: _FULL,
        errno.EDQUOT: _QUOTA,
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
        errno.EROFS: "the file system is read-only",
        errno.ENOTDIR: "a part of this path is a file",
        errno.EEXIST: "a part of this path is a file",
        errno.ENAMETOOLONG: "the name is too long",
        errno.ELOOP: "a link on this path leads back to itself",
    }


def _refusal(path: Path, reason: str, remedy: str) -> LorabenchError:
    if reason not in (_FULL, _QUOTA):
        remedy = _FREE.sub(lambda match: match[1].upper(), remedy)
    return LorabenchError(f"cannot write {path}: {reason}. {remedy}")


def _one_line(message: str) -> str:
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
    if message.isprintable():
        return message
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)
