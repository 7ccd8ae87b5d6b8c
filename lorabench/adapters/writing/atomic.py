"""Write a file or a folder whole or not at all: a temporary neighbour, fsync, rename."""

import ctypes
import os
import shutil
import sys
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from lorabench.errors import LorabenchError, explain_writing

__all__ = ["PEFT_FILES", "write_chunks", "write_file", "write_peft_folder"]

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What a PEFT folder written here holds; a folder with anything else is never replaced."""

Chunks = Iterable[bytes | memoryview]
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
        real.parent.mkdir(parents=True, exist_ok=True)
        partial = _neighbour(real)
        # Not `mkstemp`, whose file nobody else may read: the system takes the umask off these rights by itself.
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            if real.exists():
                shutil.copymode(real, partial)
            partial.replace(real)
            _sync_folder(real.parent)
        finally:
            partial.unlink(missing_ok=True)


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
        partial = _neighbour(real)
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
            _take_place(partial, real)
            _sync_folder(real.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _real(path: Path) -> Path:
    """Where links lead; a rename would replace the link itself."""
    return Path(os.path.realpath(path))


def _neighbour(path: Path) -> Path:
    """A hidden name that nobody uses; not the whole name, which may be as long as names can be."""
    return path.with_name(f".{path.name[:32]}-{uuid.uuid4().hex[:12]}")


def _take_place(new: Path, path: Path) -> None:
    """Move `new` to `path`; a folder that lay there is removed, or is left at `new`."""
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
