"""Write a file or a folder whole or not at all: a temporary neighbour, fsync, rename."""

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from lorabench.errors import LorabenchError, explain_disk_errors

__all__ = ["PEFT_FILES", "write_chunks", "write_file", "write_peft_folder"]

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What a PEFT folder written here holds; a folder with anything else is never replaced."""

Chunks = Iterable[bytes | memoryview]
_REMEDY = "Free some space or choose another place; nothing half-written was left."


def write_file(path: Path, chunks: Chunks) -> None:
    """Replace the file at `path` by `chunks` in one step: whenever this is interrupted, the old file is whole.

    Raises:
        LorabenchError: `path` is a folder or does not end in .safetensors, or the disk is full.
    """
    if path.suffix != ".safetensors" or path.is_dir():
        raise LorabenchError(f"{path}: this layout is one file whose name ends in .safetensors. Name such a file.")
    write_chunks(path, chunks)


def write_chunks(path: Path, chunks: Chunks) -> None:
    """Replace the file at `path`, of any name, by what `chunks` yield; what they raise leaves the old file whole.

    Raises:
        LorabenchError: `path` is a folder, or the disk is full.
    """
    if path.is_dir():
        raise LorabenchError(f"{path}: a folder lies there, and a file is to be written. Name a file.")
    with explain_disk_errors(path, _REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes a private file; an adapter is readable like any other file of its owner.
            Path(partial).chmod(0o666 & ~_umask())
            Path(partial).replace(path)
            _sync_folder(path.parent)
        finally:
            Path(partial).unlink(missing_ok=True)


def write_peft_folder(path: Path, files: Mapping[str, Chunks]) -> None:
    """Replace the PEFT folder at `path`: an interruption leaves the old folder or the new one, each whole.

    Linux exchanges two folders in one step. Elsewhere the old one is first moved to a hidden neighbour, and in the
    moment between the two renames nothing lies at `path`.

    Raises:
        LorabenchError: something that is no PEFT adapter lies at `path`, or the disk is full.
    """
    if path.is_file() or (path.is_dir() and any(entry.name not in PEFT_FILES for entry in path.iterdir())):
        raise LorabenchError(
            f"{path}: a PEFT adapter is written to a folder of its own, and something else is there. "
            "Name a new folder, or take away what it holds."
        )
    with explain_disk_errors(path, _REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            partial.chmod(0o777 & ~_umask())
            for name, chunks in files.items():
                with (partial / name).open("wb") as file:
                    file.writelines(chunks)
                    file.flush()
                    os.fsync(file.fileno())
            _sync_folder(partial)
            _take_place(partial, path)
            _sync_folder(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
