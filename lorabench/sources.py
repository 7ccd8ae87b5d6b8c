"""Hashes of source files: what is kept on disk is dropped when the code that made it changes."""

import hashlib
from pathlib import Path

__all__ = ["hash_of"]


def hash_of(*files: Path) -> str:
    """Hash of some files' names and contents."""
    found = hashlib.sha256()
    for path in files:
        found.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()
