"""The file of finished members, so that nothing is trained twice: not after an interruption, nor by another run."""

import functools
import hashlib
import json
import logging
import threading
from pathlib import Path
from typing import Any

from lorabench.storage import append_line, files_hash

__all__ = ["Journal", "digest", "source_code"]

_LOG = logging.getLogger(__name__)


def digest(**parts: Any) -> str:
    """A key for everything that a result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


@functools.cache
def source_code() -> str:
    """Hash of the sources that a member's numbers come from."""
    package = Path(__file__).parents[1]
    files = [package / "data.py", package / "engines.py", package / "lowrank.py"]
    files += [
        path
        for room in ("classifiers", "evaluation", "representations", "training")
        for path in (package / room).glob("*.py")
    ]
    return files_hash(*sorted(files))


class Journal:
    """Records by key, a line each, appended as they come.

    A line is written in one call and is read back only if it is whole and its sum is right, so what a kill
    leaves half-written is one member that is trained again. Several processes may append to one file.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._records = {} if path is None else _read(path)

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of a key, or None."""
        return self._records.get(key)

    def add(self, key: str, record: dict[str, Any]) -> None:
        """Append a record; any thread may call. A disk that takes no more is a warning, once."""
        with self._lock:
            self._records[key] = record
            if self._path is None:
                return
            text = json.dumps([key, record])
            try:
                append_line(self._path, f"{_sum(text)} {text}")
            except OSError as error:
                _LOG.warning(
                    "finished members are not kept in %s (%s): an interrupted run would start again. Free some "
                    "space, or set cache_dir=DIR (or LORABENCH_CACHE) to a roomier place",
                    self._path.parent,
                    error.strerror or error,
                )
                self._path = None


def _sum(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        _LOG.info("finished members %s cannot be read and are trained again: %s", path, error)
        return {}
    records = {}
    for line in lines:
        found, _, text = line.partition(" ")
        if text and found == _sum(text):
            key, record = json.loads(text)
            records[key] = record
    return records
