"""What headers say, kept for the next server: reading a thousand of them takes seconds."""

import contextlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lorabench
from lorabench.adapters.metadata.library import COLUMNS
from lorabench.storage import replace_file

__all__ = ["Rows", "State"]

State = tuple[int, ...]
"""By which a file is known to be the same as when it was read."""
_MOST = 50_000
"""Rows of the file; the newest are kept."""


class Rows:
    """Rows of `library.row_of` by file, for as long as the file is the same.

    The file has a line for each, which are appended; of two for one path the last counts. What another version of
    this program wrote, and a line that is no row, are passed over.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._known: dict[str, tuple[State, dict[str, Any]]] | None = None

    def get(self, path: Path, state: State) -> Mapping[str, Any] | None:
        """The row of a file in this state; None where it was not read yet."""
        with self._lock:
            known = self._all().get(str(path))
        return known[1] if known is not None and known[0] == state else None

    def put(self, path: Path, state: State, row: dict[str, Any], keep: bool) -> None:
        """Know a row.

        Args:
            path: of the adapter.
            state: in which it was read.
            row: what it says.
            keep: whether the next server shall know it too; what a disk does not take, it reads again.
        """
        with self._lock:
            self._all()[str(path)] = state, row
            if keep:
                with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
                    if not file.tell():
                        file.write(_line(_HEAD))
                    file.write(_line([str(path), state, row]))

    def _all(self) -> dict[str, tuple[State, dict[str, Any]]]:
        if self._known is None:
            self._known, lines = _read(self._path)
            if lines > 2 * len(self._known) + 100 or lines > _MOST:
                self._known = dict(list(self._known.items())[-_MOST:])
                rows = [_line([path, *known]) for path, known in self._known.items()]
                with contextlib.suppress(OSError):
                    replace_file(self._path, "".join([_line(_HEAD), *rows]), durable=False)
        return self._known


_HEAD = [lorabench.__version__, *COLUMNS]


def _line(data: object) -> str:
    return f"{json.dumps(data)}\n"


def _read(path: Path) -> tuple[dict[str, tuple[State, dict[str, Any]]], int]:
    """What the file knows, and how many lines it has."""
    try:
        head, *lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return {}, 0
    if head + "\n" != _line(_HEAD):
        with contextlib.suppress(OSError):
            path.unlink()
        return {}, 0
    known: dict[str, tuple[State, dict[str, Any]]] = {}
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            name, state, row = json.loads(line)
            if isinstance(name, str) and isinstance(row, dict) and row.keys() == COLUMNS.keys():
                known.pop(name, None)  # to the end: the newest are kept
                known[name] = tuple(state), row
    return known, len(lines)
