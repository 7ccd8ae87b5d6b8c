"""The adapters that a user may choose: those of the server's folder, what was uploaded, and what jobs have made."""

import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorabench.adapters.metadata.library import row_of
from lorabench.adapters.reading.folders import adapter_files
from lorabench.errors import LorabenchError
from lorabench.web.queue import Job, Queue
from lorabench.web.tools import Input
from lorabench.web.uploads import Uploads

__all__ = ["Item", "Origin", "Shelf"]

Origin = Literal["folder", "upload", "job"]
_FRESH = 2.0
"""Seconds for which a listing of the folder holds."""


@dataclass(frozen=True)
class Item:
    """An adapter on the shelf.

    Attributes:
        id: what requests call it: no path.
        name: what people call it.
        path: of its file.
        origin: where it comes from.
        changed: when, seconds since 1970.
        size: bytes.
        source: id of the upload or of the job.
    """

    id: str
    name: str
    path: Path
    origin: Origin
    changed: float
    size: int
    source: str = ""

    @property
    def input(self) -> Input:
        """The same for a command."""
        return Input(self.path, self.name)


class Shelf:
    """All of it; nothing of one user's is seen by another.

    Args:
        folder: adapters of everybody, at any depth, which are only read; None: there are none.
        uploads: what users brought.
        queue: whose jobs make adapters.

    Raises:
        LorabenchError: there is no such folder.
    """

    def __init__(self, folder: Path | None, uploads: Uploads, queue: Queue) -> None:
        self._folder, self._uploads, self._queue = folder, uploads, queue
        self._rows: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._listed: tuple[float, list[Item]] = (float("-inf"), [])
        self._common()

    def items(self, user: str) -> list[Item]:
        """What a user may choose, the user's own first."""
        own = [
            _item("upload", upload.name, upload.path, upload.id, upload.brought) for upload in self._uploads.of(user)
        ]
        made = [
            self._made(job, name)
            for job in self._queue.jobs(user)
            if job.state == "done"
            for name in self._queue.files(user, job.id)
            if name.endswith(".safetensors")
        ]
        return [*(item for item in (*own, *made) if item is not None), *self._common()]

    def item(self, user: str, item_id: str) -> Item:
        """One of them.

        Raises:
            LorabenchError: the user has none of this id.
        """
        found = next((item for item in self.items(user) if item.id == item_id), None)
        if found is None:
            raise LorabenchError(f"there is no adapter {item_id[:40]!r} here. It may have been removed; choose again.")
        return found

    def remove(self, user: str, item_id: str) -> None:
        """Take away an upload; what jobs have made goes with its job.

        Raises:
            LorabenchError: the user has none of this id, it is no upload, or a job reads it.
        """
        item = self.item(user, item_id)
        if item.origin != "upload":
            raise LorabenchError(f"{item.name} is no upload of yours: only those are removed here.")
        if self._queue.reads(item.path.parent):
            raise LorabenchError(f"{item.name} is read by a job: let it end, or cancel it.")
        self._uploads.remove(user, item.source)

    def row(self, item: Item) -> Mapping[str, Any]:
        """What its header says, a value for each of `library.COLUMNS`; read once for each state of the file."""
        state = self._state(item)
        known = self._rows.get(item.path)
        if known is None or known[0] != state:
            known = state, row_of(item.path, item.path.parent)
            with self._lock:
                self._rows[item.path] = known
        return known[1] | {"file": item.name}

    def known(self, item: Item) -> bool:
        """Whether its header was read already."""
        known = self._rows.get(item.path)
        return known is not None and known[0] == self._state(item)

    def _made(self, job: Job, name: str) -> Item | None:
        try:
            path = self._queue.file(job.user, job.id, name)
        except LorabenchError:  # the job was removed meanwhile
            return None
        return _item("job", f"{job.id[:4]}/{name}", path, job.id, job.made)

    @staticmethod
    def _state(item: Item) -> tuple[int, int]:
        return round(item.changed * 1e6), item.size

    def _common(self) -> list[Item]:
        if self._folder is None:
            return []
        if time.monotonic() - self._listed[0] > _FRESH:
            files = (place.file for place in adapter_files(self._folder).adapters)
            found = [_item("folder", file.relative_to(self._folder).as_posix(), file) for file in files]
            self._listed = time.monotonic(), [item for item in found if item is not None]
        return self._listed[1]


def _item(origin: Origin, name: str, path: Path, source: str = "", changed: float | None = None) -> Item | None:
    """None: it went between the listing and here."""
    try:
        found = path.stat()
    except OSError:
        return None
    key = f"{origin}:{source}:{name}".encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(key).hexdigest()[:16]
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # JSON has no other bytes
    return Item(digest, name, path, origin, found.st_mtime if changed is None else changed, found.st_size, source)
