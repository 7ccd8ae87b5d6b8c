"""The adapters that a user may choose: those of the server's folder, what was uploaded, and what jobs have made."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorabench.adapters.metadata.library import row_of
from lorabench.adapters.reading.beside import CONFIG
from lorabench.adapters.reading.folders import AdapterPlace, adapter_files
from lorabench.adapters.reading.opening import FOLDER_FILES
from lorabench.errors import LorabenchError
from lorabench.health.series import in_series
from lorabench.web.queue import Job, Queue
from lorabench.web.rows import Rows, State
from lorabench.web.tools import Input
from lorabench.web.uploads import Uploads

__all__ = ["Item", "Origin", "Shelf", "Training"]

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

    @property
    def files(self) -> dict[str, Path]:
        """What belongs to it, by the names that it has in an archive: the file, and the configuration beside it."""
        config = self.path.with_name(CONFIG)
        return {self.path.name: self.path} | ({CONFIG: config} if config.is_file() else {})

    @property
    def called(self) -> AdapterPlace:
        """Where it would lie if names were all: a file that all folders call alike is called by its folder."""
        file = Path(self.origin, self.name)
        return AdapterPlace(file.parent if file.name in FOLDER_FILES and len(file.parts) > 2 else file, file)


@dataclass(frozen=True)
class Training:
    """Adapters that are called as checkpoints of one training.

    Attributes:
        name: what they have in common.
        items: by their steps.
    """

    name: str
    items: tuple[Item, ...]


class Shelf:
    """All of it; nothing of one user's is seen by another.

    Args:
        folder: adapters of everybody, at any depth, which are only read; None: there are none.
        uploads: what users brought.
        queue: whose jobs make adapters.
        rows: what headers say.

    Raises:
        LorabenchError: there is no such folder.
    """

    def __init__(self, folder: Path | None, uploads: Uploads, queue: Queue, rows: Rows) -> None:
        self._folder, self._uploads, self._queue, self._rows = folder, uploads, queue, rows
        self._made: dict[str, dict[str, tuple[Item, ...]]] = {}  # user -> job -> what it made, which stays as it is
        self._listed: tuple[float, dict[str, Item]] = (float("-inf"), {})
        self._common()

    def items(self, user: str) -> list[Item]:
        """What a user may choose, the user's own first."""
        return [*self._own(user), *self._common().values()]

    def item(self, user: str, item_id: str) -> Item:
        """One of them.

        Raises:
            LorabenchError: the user has none of this id.
        """
        found = self._listed[1].get(item_id)  # the folder is not listed anew for one that is there as it was
        if found is None or _item("folder", found.name, found.path) != found:
            found = next((item for item in self._own(user) if item.id == item_id), None)
            found = found or self._common().get(item_id)
        if found is None:
            raise LorabenchError(f"there is no adapter {item_id[:40]!r} here. It may have been removed; choose again.")
        return found

    def trainings(self, user: str) -> list[Training]:
        """Adapters that a user may choose and that are called as checkpoints, those of each training together."""
        items: dict[AdapterPlace, Item] = {}
        for item in self.items(user):
            items.setdefault(item.called, item)
        several = [one for one in in_series(list(items)) if len(one.places) > 1]
        return [
            Training(Path(*one.name.parts[1:]).as_posix(), tuple(items[place] for place in one.places))
            for one in several
        ]

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
        known = self.known_row(item)
        if known is None:
            read = row_of(item.path, item.path.parent)
            # What a user brought goes when he removes it: only the folder's is kept.
            self._rows.put(item.path, _state(item), read, keep=item.origin == "folder")
            known = {**read, "file": item.name}
        return known

    def known_row(self, item: Item) -> Mapping[str, Any] | None:
        """The same where the header was read already, else None."""
        known = self._rows.get(item.path, _state(item))
        return None if known is None else {**known, "file": item.name}

    def _own(self, user: str) -> list[Item]:
        uploads = (
            _item("upload", upload.name, upload.path, upload.id, upload.brought) for upload in self._uploads.of(user)
        )
        known = self._made.get(user, {})
        made = {
            job.id: known[job.id] if job.id in known else self._made_by(job)
            for job in self._queue.jobs(user)
            if job.state == "done"
        }
        self._made[user] = made
        return [*(item for item in uploads if item), *(item for items in made.values() for item in items)]

    def _made_by(self, job: Job) -> tuple[Item, ...]:
        try:
            names = [name for name in self._queue.files(job.user, job.id) if name.endswith(".safetensors")]
            paths = {name: self._queue.file(job.user, job.id, name) for name in names}
        except LorabenchError:  # the job was removed meanwhile
            return ()
        made = (_item("job", f"{job.id[:4]}/{name}", path, job.id, job.made) for name, path in paths.items())
        return tuple(item for item in made if item is not None)

    def _common(self) -> dict[str, Item]:
        if self._folder is None:
            return {}
        if time.monotonic() - self._listed[0] > _FRESH:
            files = (place.file for place in adapter_files(self._folder).adapters)
            found = [_item("folder", file.relative_to(self._folder).as_posix(), file) for file in files]
            self._listed = time.monotonic(), {item.id: item for item in found if item is not None}
        return self._listed[1]


def _state(item: Item) -> State:
    """What the header says depends on the file and on the configuration beside it."""
    try:
        beside = item.path.with_name(CONFIG).stat().st_mtime_ns
    except OSError:
        beside = 0
    return round(item.changed * 1e6), item.size, beside


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
