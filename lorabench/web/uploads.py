"""What users bring: held to names, sizes and a quota before a byte is kept, and to its header before it is shown."""

import functools
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lorabench.adapters.reading.beside import CONFIG
from lorabench.adapters.reading.table import read_table
from lorabench.errors import LorabenchError, explain_writing
from lorabench.storage import new_folder, replace_file
from lorabench.web.job import size_of

__all__ = ["Brought", "Upload", "Uploads"]

_NAME = re.compile(r"[^\W.][\w .()+,@#=-]{0,119}\.safetensors")
_LONGEST = 200
"""Bytes: a file system takes 255, and names of what is made of it are longer."""
_PEFT = "adapter_model.safetensors"
_CHUNK = 2**20
_MIB = 2**20


@dataclass(frozen=True)
class Brought:
    """A file of a request.

    Attributes:
        name: as the browser calls it.
        file: to read it from.
    """

    name: str
    file: BinaryIO


@dataclass(frozen=True)
class Upload:
    """An adapter that a user has brought.

    Attributes:
        id: of it.
        path: of its file; an adapter_config.json may lie beside it.
        brought: when, seconds since 1970.
    """

    id: str
    path: Path
    brought: float

    @property
    def name(self) -> str:
        """As it was brought; that of a PEFT adapter has its folder before it."""
        inside = self.path.parts[self.path.parts.index(self.id) + 1 :]
        return "/".join(inside)


class Uploads:
    """The adapters that users have brought, a folder for each.

    Args:
        folder: of them all.
        most: bytes of one request.
        quota: bytes of all that a user has.
    """

    def __init__(self, folder: Path, most: int, quota: int) -> None:
        self._folder, self._most, self._quota = folder, most, quota
        self._coming: dict[str, int] = {}
        self._listed: dict[str, list[Upload]] = {}  # nobody else writes here
        self._changes = 0
        self._lock = threading.Lock()

    @contextmanager
    def room(self, user: str, size: int | None, used: Callable[[], int]) -> Iterator[None]:
        """Keep room for bytes that are on their way, so that many requests at once stay within the quota too.

        Its beginning looks at the disk, and belongs into a thread; its end does not.

        Args:
            user: who brings them.
            size: bytes of the request, as it says before it starts.
            used: measures the bytes of all that the user has here.

        Raises:
            LorabenchError: the request does not say how much comes, or it is too much.
        """
        if size is None or size < 0:
            raise LorabenchError("an upload must say its size before it starts (Content-Length).")
        if size > self._most:
            raise LorabenchError(f"{size / _MIB:.1f} MiB came; an upload has at most {self._most / _MIB:g} MiB.")
        with self._lock:
            others = self._coming.get(user, 0)
            self._coming[user] = others + size
        try:
            # Measured after the room was taken, and without the lock: what ends meanwhile is counted twice, never not.
            kept = used() + others
            if kept + size > self._quota:
                raise LorabenchError(
                    f"{size / _MIB:.1f} MiB came, and {kept / _MIB:.1f} of {self._quota / _MIB:g} MiB are used. "
                    "Remove uploads or jobs first."
                )
            yield
        finally:
            with self._lock:
                self._coming[user] -= size
                if not self._coming[user]:
                    del self._coming[user]

    def add(self, user: str, files: Sequence[Brought]) -> list[Upload]:
        """Keep what one request brought: adapters, or one adapter with its adapter_config.json; all of it or nothing.

        Raises:
            LorabenchError: a name that is not allowed, or a file that is no adapter.
        """
        configs = [one for one in files if one.name == CONFIG]
        adapters = [one for one in files if one.name != CONFIG]
        for one in adapters:
            _check_name(one.name)
        if not adapters or (configs and len(adapters) > 1) or len(configs) > 1:
            raise LorabenchError(
                f"{len(adapters)} adapters and {len(configs)} {CONFIG} came. Bring .safetensors files, or one of them "
                f"with its {CONFIG}."
            )
        try:
            with ExitStack() as stack:
                return [stack.enter_context(self._checked(user, one, configs)) for one in adapters]
        finally:
            self._changed()

    def of(self, user: str) -> list[Upload]:
        """A user's uploads, the newest first; the disk is looked at once for each change."""
        with self._lock:
            listed, changes = self._listed.get(user), self._changes
        if listed is not None:
            return listed
        files = [
            *self._place(user).glob("[!.]*/*.safetensors"),
            *self._place(user).glob("[!.]*/*/adapter_model.safetensors"),
        ]
        found = [one for file in files if (one := _upload(file.relative_to(self._place(user)).parts[0], file))]
        found.sort(key=lambda upload: upload.brought, reverse=True)
        with self._lock:
            if changes == self._changes:  # else it may miss what came meanwhile
                self._listed[user] = found
        return found

    def _changed(self) -> None:
        with self._lock:
            self._listed.clear()
            self._changes += 1

    def remove(self, user: str, upload_id: str) -> None:
        """Take one away.

        Raises:
            LorabenchError: the user has no such upload.
        """
        found = next((upload for upload in self.of(user) if upload.id == upload_id), None)
        if found is None:
            raise LorabenchError(f"there is no upload {upload_id!r} of yours.")
        with explain_writing(self._place(user) / upload_id, "Remove it by hand."):
            shutil.rmtree(self._place(user) / upload_id)
        self._changed()

    def size(self, user: str) -> int:
        """Bytes of all that a user has brought."""
        return size_of(self._place(user))

    def forget_older(self, seconds: float, needed: Callable[[Path], bool] = lambda _: False) -> None:
        """Take away what was brought longer ago, of all users, and what an interrupted upload has left.

        Args:
            seconds: since it was brought.
            needed: whether a folder has to stay.
        """
        for folder in self._folder.glob("*/*"):
            try:
                age = time.time() - folder.stat().st_mtime
            except OSError:  # its user has removed it
                continue
            if needed(folder):
                continue
            if age > seconds or (folder.name.startswith(".") and age > 3600):
                shutil.rmtree(folder, ignore_errors=True)
        self._changed()

    @contextmanager
    def _checked(self, user: str, one: Brought, configs: Sequence[Brought]) -> Iterator[Upload]:
        """One of a request's adapters: it is there from the moment on at which all of them are known to be whole."""
        upload_id = secrets.token_hex(8)
        name = f"{Path(one.name).stem}/{_PEFT}" if configs else one.name
        with new_folder(self._place(user) / upload_id, replace=False) as partial:
            file = partial / name
            for brought, place in ((one, file), *((config, file.with_name(CONFIG)) for config in configs)):
                chunks = iter(functools.partial(brought.file.read, _CHUNK), b"")
                replace_file(place, chunks, durable=False)
            try:
                table = read_table(file)
            except LorabenchError as error:
                raise LorabenchError(str(error).replace(str(file), one.name)) from error
            if not table.rows:
                raise LorabenchError(f"{one.name}: no LoRA pair (down and up) is in it. Bring an adapter.")
            yield Upload(upload_id, self._place(user) / upload_id / name, time.time())

    def _place(self, user: str) -> Path:
        return self._folder / user


def _upload(upload_id: str, file: Path) -> Upload | None:
    try:
        return Upload(upload_id, file, file.stat().st_mtime)
    except OSError:  # it was removed between the listing and here
        return None


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name.encode()) > _LONGEST:
        raise LorabenchError(
            f"{name[:80]!r} cannot be brought: a name of letters, digits, spaces and . _ - with .safetensors at its "
            f"end is needed (or {CONFIG} with one). Convert other files first: lorabench adapters convert."
        )
