"""The file of users: a line `name:hash` for each, the hash one of argon2, and nobody else may read it."""

import logging
import os
import re
import secrets
import stat
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import argon2

from lorabench.errors import LorabenchError, explain_writing
from lorabench.storage import locked, replace_file

__all__ = ["Users", "add_user", "remove_user"]

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHORTEST, _LONGEST = 10, 1024
_LARGEST_FILE = 1 << 20
_AT_ONCE = 2
# RFC 9106's second choice. Said here, not left to the library: every line of the file must cost the same to try.
_HASHER = argon2.PasswordHasher(time_cost=3, memory_cost=65536, parallelism=4, hash_len=32, salt_len=16)
_HASH = re.compile(r"\$argon2id\$v=19\$m=65536,t=3,p=4\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}")
_REMEDY = "Choose another file of users."


class Users:
    """The file as it is now: it is read again when it changes, and one that cannot be used any more lets nobody in.

    Args:
        path: the file.

    Raises:
        LorabenchError: it is not there, others may read or write it, or it has a line that is none of `add_user`'s.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._verifying = threading.BoundedSemaphore(_AT_ONCE)  # each takes 64 MiB
        self._stamp = _stamp(path)
        self._hashes = _read(path)
        self._nobody = _HASHER.hash(secrets.token_urlsafe(32))

    def verified(self, name: str, password: str) -> str | None:
        """Try a password, which takes as long where nobody has the name.

        Args:
            name: of the user.
            password: what somebody says it is.

        Returns:
            The hash that it fits; None where it does not.
        """
        known = self.hash_of(name)
        with self._verifying:
            fits = _fits(known or self._nobody, password)
        return known if fits else None

    def hash_of(self, name: str) -> str | None:
        """A user's password hash; None where there is no such user.

        Args:
            name: of the user.
        """
        with self._lock:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                try:
                    self._hashes = _read(self._path)
                except LorabenchError as error:
                    _LOG.error("Nobody can sign in: %s", error)
                    self._hashes = {}
                self._stamp = stamp
            return self._hashes.get(name)


def add_user(path: Path, name: str, password: str) -> None:
    """Write a user into the file of users, which is made if need be; one of this name gets the new password.

    Args:
        path: the file.
        name: letters, digits, ".", "_" and "-".
        password: at least 10 characters.

    Raises:
        LorabenchError: the name or the password cannot be used, or the file cannot be read or written.
    """
    if not _NAME.fullmatch(name):
        needed = 'up to 64 letters, digits, ".", "_" and "-" are needed, and a letter or digit at the start'
        raise LorabenchError(f"name={name!r}: {needed}.")
    if not _SHORTEST <= len(password) <= _LONGEST:
        needed = f"{_SHORTEST} to {_LONGEST} are needed"
        raise LorabenchError(f"the password has {len(password)} characters, and {needed}.")
    line = _HASHER.hash(_bytes(password))
    with _changed(path) as hashes:
        hashes[name] = line


def remove_user(path: Path, name: str) -> None:
    """Take a user out of the file of users; his sessions are over with the next thing that he asks for.

    Args:
        path: the file.
        name: of the user.

    Raises:
        LorabenchError: there is no such user, or the file cannot be read or written.
    """
    with _changed(path) as hashes:
        if name not in hashes:
            raise LorabenchError(f"{path}: no user has the name {name!r}. Its names: {', '.join(hashes) or 'none'}.")
        del hashes[name]


@contextmanager
def _changed(path: Path) -> Iterator[dict[str, str]]:
    """The users of the file, to be changed; one process at a time does so."""
    with locked(path.with_name(f"{path.name}.lock"), _REMEDY):
        hashes = _read(path) if path.exists() else {}
        yield hashes
        with explain_writing(path, _REMEDY):
            replace_file(path, "".join(f"{name}:{line}\n" for name, line in hashes.items()), mode=0o600)


def _read(path: Path) -> dict[str, str]:
    try:
        if not path.is_file():
            raise LorabenchError(f"{path}: there is no such file of users. Add a user first.")
        with path.open("rb") as file:
            _check_rights(path, os.fstat(file.fileno()))
            lines = file.read(_LARGEST_FILE).decode(errors="replace").splitlines()
    except OSError as error:
        raise LorabenchError(f"{path}: the file of users cannot be read: {error.strerror}.") from error
    hashes: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, _, password_hash = line.partition(":")
        if not _NAME.fullmatch(name) or not _HASH.fullmatch(password_hash):
            needed = "a name and a hash, as adding a user writes them, are needed. Take the line out, and add the user"
            raise LorabenchError(f"{path}, line {number}: {needed}.")
        if name in hashes:
            raise LorabenchError(f"{path}, line {number}: {name} has a line above too. Take one of them out.")
        hashes[name] = password_hash
    return hashes


def _check_rights(path: Path, found: os.stat_result) -> None:
    if os.name == "posix" and found.st_mode & 0o077:
        rights = f"{stat.S_IMODE(found.st_mode):03o}"
        raise LorabenchError(f"{path}: its rights are {rights}, so others may read or write it. chmod 600 {path}")
    if found.st_size > _LARGEST_FILE:
        raise LorabenchError(f"{path}: {found.st_size} bytes, and a file of users has at most {_LARGEST_FILE}.")


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does; None where it is not there."""
    try:
        now = path.stat()
    except OSError:
        return None
    return now.st_mtime_ns, now.st_ctime_ns, now.st_size, now.st_ino


def _fits(password_hash: str, password: str) -> bool:
    if len(password) > _LONGEST:
        password = ""  # nobody has this one; it costs the same
    try:
        return _HASHER.verify(password_hash, _bytes(password))
    except argon2.exceptions.VerifyMismatchError:
        return False


def _bytes(password: str) -> bytes:
    """One keyboard composes a letter and its accent, another writes both."""
    return unicodedata.normalize("NFC", password).encode(errors="surrogatepass")
