"""Everything that is written: whole or not at all (a temporary neighbour, then a rename), and never over what is there.

Checksums and locks of files are here too.
"""

import ctypes
import errno
import hashlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lorabench.errors import LorabenchError, explain_disk_errors, explain_writing

__all__ = [
    "PEFT_FILES",
    "append_line",
    "file_sha256",
    "files_hash",
    "is_locked",
    "is_neighbour",
    "locked",
    "neighbour",
    "new_folder",
    "refuse_overwriting",
    "replace_file",
    "take_place",
    "write_chunks",
    "write_file",
    "write_peft_folder",
]

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What a PEFT folder written here holds; a folder with anything else is never replaced."""

_NEIGHBOUR = re.compile(r"\..{1,32}-[0-9a-f]{12}(-old)?", re.DOTALL)
Chunks = Iterable[bytes | memoryview]
Content = Chunks | bytes | str
"""What a file shall hold; a text is written in UTF-8."""
_REMEDY = "Free some space or choose another place; nothing half-written was left."


def write_file(path: Path, chunks: Chunks) -> None:
    """Replace the file at `path` by `chunks` in one step: whenever this is interrupted, the old file is whole.

    Raises:
        LorabenchError: `path` is a folder or does not end in .safetensors, or it cannot be written.
    """
    with explain_writing(path, _REMEDY):
        if path.suffix != ".safetensors" or path.is_dir():
            raise LorabenchError(f"{path}: this layout is one file whose name ends in .safetensors. Name such a file.")
    write_chunks(path, chunks)


def write_chunks(path: Path, chunks: Chunks) -> None:
    """Replace the file at `path`, of any name, by what `chunks` yield; what they raise leaves the old file whole.

    A link stays, and what it points at is replaced. The new file has the rights of the old one.

    Raises:
        LorabenchError: `path` is a folder or a device, or it cannot be written.
    """
    with explain_writing(path, _REMEDY):
        real = _real(path)
        if real.is_dir():
            raise LorabenchError(f"{path}: a folder lies there, and a file is to be written. Name a file.")
        if real.exists() and not real.is_file():
            raise LorabenchError(f"{path}: what lies there is no file but a device or a pipe. Name a file.")
        replace_file(real, chunks)


def replace_file(path: Path, content: Content, durable: bool = True, mode: int = 0o666) -> None:
    """`write_chunks` for code that deals with the system's errors by itself: they pass as they are.

    Args:
        path: the file; folders above it are made.
        content: what it shall hold.
        durable: whether to wait until it is on the disk. What can be made again, and is known to be whole by its
            checksum, need not wait.
        mode: rights of a file that is new, less the umask; they hold from the first moment on.

    Raises:
        OSError: the file cannot be written; the old one is left.
    """
    real = _real(path)
    real.parent.mkdir(parents=True, exist_ok=True)
    partial = neighbour(real)
    # Not `mkstemp`, whose file nobody else may read: the system takes the umask off these rights by itself.
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(_chunks(content))
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if real.exists():
            shutil.copymode(real, partial)
        partial.replace(real)
        if durable:
            _sync_folder(real.parent)
    finally:
        partial.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append one line in one call, so that several processes may append to one file.

    What a kill leaves half-written never swallows the next line.

    Raises:
        OSError: the disk takes no more.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.lseek(handle, 0, os.SEEK_END)
        cut = size > 0 and _byte_at(handle, size - 1) != b"\n"
        os.write(handle, f"{chr(10) if cut else ''}{line}\n".encode())
    finally:
        os.close(handle)


def write_peft_folder(path: Path, files: Mapping[str, Chunks]) -> None:
    """Replace the PEFT folder at `path`: an interruption leaves the old folder or the new one, each whole.

    Linux exchanges two folders in one step. Elsewhere the old one is first moved to a hidden neighbour, and in the
    moment between the two renames nothing lies at `path`. A link to a folder stays.

    Args:
        path: a folder, which need not be there; it may hold `PEFT_FILES`, and files of the names that are written.
        files: name -> what the file shall hold.

    Raises:
        LorabenchError: something that is no PEFT adapter lies at `path`, or it cannot be written.
    """
    with explain_writing(path, _REMEDY):
        real = _real(path)
        known = {*PEFT_FILES, *files}
        if (real.exists() and not real.is_dir()) or (real.is_dir() and {one.name for one in real.iterdir()} - known):
            raise LorabenchError(
                f"{path}: a PEFT adapter is written to a folder of its own, and something else is there. "
                "Name a new folder, or take away what it holds."
            )
        real.parent.mkdir(parents=True, exist_ok=True)
        partial = neighbour(real)
        try:
            partial.mkdir()
            for name, chunks in files.items():
                with (partial / name).open("wb") as file:
                    file.writelines(chunks)
                    file.flush()
                    os.fsync(file.fileno())
            if real.exists():
                shutil.copymode(real, partial)
            _sync_folder(partial)
            take_place(partial, real)
            _sync_folder(real.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_folder(path: Path, replace: bool = True) -> Iterator[Path]:
    """A hidden folder beside `path` that takes its place at the end; it goes if anything fails before.

    Args:
        path: a folder, which need not be there.
        replace: whether a folder that holds something is replaced, or refused.

    Raises:
        LorabenchError: a folder that may not be replaced got something in it meanwhile.
        OSError: nothing can be made there; what lay at `path` is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = neighbour(path)
    partial.mkdir()
    try:
        yield partial
        if replace:
            take_place(partial, path)
        else:
            _take_free_place(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def neighbour(path: Path) -> Path:
    """A hidden name beside `path` that nobody uses; not the whole name, which may be as long as names can be."""
    return path.with_name(f".{path.name[:32]}-{uuid.uuid4().hex[:12]}")


def is_neighbour(name: str) -> bool:
    """Whether a name is one that `neighbour` makes: what a kill has left of something that never became whole."""
    return _NEIGHBOUR.fullmatch(name) is not None


def take_place(new: Path, path: Path) -> None:
    """Move a folder to `path`; a folder that lay there is removed, or is left at `new`, for the caller to remove.

    Raises:
        OSError: it cannot be moved; what lay at `path` is left.
    """
    if not path.exists() or not any(path.iterdir()):
        new.rename(path)  # an empty folder may be renamed over
        return
    if _exchange(new, path):
        return
    old = new.with_name(f"{new.name}-old")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def refuse_overwriting(path: Path, force: bool, option: str = "--out", folder: bool | None = None) -> None:
    """Refuse a path that something lies at, but for an empty folder.

    Args:
        path: what is to be written.
        force: whether `--force` was said, which replaces a file, or a folder that is one PEFT adapter and no more.
        option: the one that gave `path`.
        folder: whether a folder is to be written, or a file (False); None where both can be.

    Raises:
        LorabenchError: `path` cannot be replaced, or could be and `force` is not said.
    """
    with explain_writing(path, f"Give another {option}."):
        there = path.exists()
        inside = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else None
    if not there or (inside == [] and folder is not False):
        return
    if inside is None:
        if folder:
            raise LorabenchError(f"{path} is a file, and a folder is to be written. Give another {option}.")
        if not force:
            raise LorabenchError(f"{path} exists already. Give another {option}, or --force to replace it.")
        return
    if folder is False:
        raise LorabenchError(f"{path} is a folder, and a file is to be written. Give another {option}.")
    if not set(PEFT_FILES).issuperset(inside):
        held = ", ".join(inside[:3]) + (", ..." if len(inside) > 3 else "")
        raise LorabenchError(
            f"{path} is a folder that holds {held}: one with more than a PEFT adapter is never replaced. "
            f"Give another {option}."
        )
    if not force:
        raise LorabenchError(
            f"{path} exists already, a folder with a PEFT adapter. Give another {option}, or --force to replace it, "
            "which only another PEFT adapter can."
        )


@contextmanager
def locked(path: Path, remedy: str = _REMEDY, busy: str | None = None) -> Iterator[None]:
    """Let one process at a time go on; the system frees the lock of a process that dies.

    Args:
        path: the lock's file, which is made.
        remedy: what to do where it cannot be.
        busy: what is said where another process goes on; None: it is waited for.

    Raises:
        LorabenchError: the lock cannot be made there, or another process has it and is not waited for.
    """
    from filelock import FileLock, Timeout  # few need it

    with explain_disk_errors(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path, timeout=-1 if busy is None else 0)
        try:
            held.acquire()
        except Timeout:
            raise LorabenchError(busy or "") from None
    try:
        yield
    finally:
        held.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file; where nobody may lock it, nobody does."""
    from filelock import FileLock, Timeout

    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_hash(*files: Path) -> str:
    """SHA-256 of the names and contents of files: what was made by code is dropped when the code changes."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _chunks(content: Content) -> Chunks:
    if isinstance(content, str):
        return [content.encode()]
    return [content] if isinstance(content, bytes) else content


def _byte_at(handle: int, position: int) -> bytes:
    os.lseek(handle, position, os.SEEK_SET)
    return os.read(handle, 1)


def _real(path: Path) -> Path:
    """Where links lead; a rename would replace the link itself."""
    return Path(os.path.realpath(path))


def _take_free_place(new: Path, path: Path) -> None:
    try:
        new.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise LorabenchError(f"{path}: somebody wrote into it meanwhile. Name a new or empty folder") from error


def _exchange(first: Path, second: Path) -> bool:
    """Whether the system could give two folders each other's name in one step (renameat2 of Linux)."""
    call = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call is not None and call(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows cannot open folders, and needs no such thing."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
