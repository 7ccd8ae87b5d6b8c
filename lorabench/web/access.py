"""Who may use the page: a token or names with passwords, sessions that end, and a limit on tries.

There are three ways in. Without users and without a token a token is made that is good for one sign-in. A given token
is good for any number of them, and for calls of the API. A file of users has a line `name:hash` for each, made by
`add_user`, and they sign in by name and password.
"""

import hashlib
import hmac
import ipaddress
import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorabench.errors import LorabenchError
from lorabench.web.users import Users, add_user, remove_user

__all__ = ["Access", "TooManyTries", "add_user", "remove_user"]

_ONLY_USER = "me"
_SHORTEST_TOKEN = 32
_TRIES, _WINDOW = 10, 15 * 60
_COUNTS_KEPT = 20_000
_SESSIONS_EACH = 100


class TooManyTries(LorabenchError):  # noqa: N818  # it is what happened, not whose mistake it was
    """A peer or a name failed too often; nothing is tried until `seconds` are over.

    Attributes:
        seconds: how long it lasts from now on.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"Too many failed tries. Try again in {math.ceil(seconds / 60)} min.")
        self.seconds = seconds


@dataclass(frozen=True)
class _Session:
    user: str
    expires: float
    password_hash: str


class Access:
    """Lets people in and knows them again; every method may be called from any thread.

    Args:
        users: the file of names and passwords.
        token: lets in whoever has it; not together with `users`.
        session_hours: when a session ends, whatever happens in it.
        clock: seconds, as `time.time` gives them.

    Raises:
        LorabenchError: the token is too short, both ways are asked for, or the file cannot be used.
    """

    def __init__(
        self,
        users: Path | None = None,
        token: str | None = None,
        session_hours: float | int = 12,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if users is not None and token is not None:
            raise LorabenchError("a token and a file of users are given, and there is one way in. Leave one out.")
        if token is not None and len(token) < _SHORTEST_TOKEN:
            raise LorabenchError(f"the token has {len(token)} characters, and at least {_SHORTEST_TOKEN} are needed.")
        if not 0 < session_hours < math.inf:
            raise LorabenchError(f"session_hours={session_hours}: a number above 0 is needed")
        self.session_seconds = math.ceil(session_hours * 3600)
        self._users = None if users is None else Users(users)
        self._first = secrets.token_urlsafe(32) if users is None and token is None else None
        given = token if self._first is None else self._first
        self._token = None if given is None else _digest(given)
        self._clock = clock
        self._tries = _Tries(clock)
        self._lock = threading.Lock()
        self._sessions: dict[bytes, _Session] = {}

    @property
    def first_token(self) -> str | None:
        """The token that is good for one sign-in; None where there is none, and once it was used."""
        return self._first

    @property
    def by_password(self) -> bool:
        """Whether people sign in by name and password, and not by a token."""
        return self._users is not None

    def redeem(self, token: str, peer: str) -> str | None:
        """A session for who has the token.

        Args:
            token: what somebody says it is.
            peer: the address that it came from.

        Returns:
            The session's id; None where the token is not the right one.

        Raises:
            TooManyTries: this peer failed too often.
        """
        self._tries.begin(f"peer {_network(peer)}")
        with self._lock:
            if not self._is_token(token):
                return None
            if self._first is not None:
                self._first = self._token = None
        self._tries.take_back(f"peer {_network(peer)}")
        return self._open(_ONLY_USER, "")

    def bearer(self, token: str, peer: str) -> str | None:
        """The user of one call of the API, without a session.

        Args:
            token: what the call says it is; one that is good for one sign-in is none here.
            peer: the address that it came from.

        Returns:
            The user's name; None where the token is not the right one.

        Raises:
            TooManyTries: this peer failed too often.
        """
        self._tries.begin(f"peer {_network(peer)}")
        with self._lock:
            if self._first is not None or not self._is_token(token):
                return None
        self._tries.take_back(f"peer {_network(peer)}")
        return _ONLY_USER

    def sign_in(self, name: str, password: str, peer: str) -> str | None:
        """A session for a name and its password; slow by intent, so to be called in a thread.

        Args:
            name: of the user.
            password: what somebody says it is.
            peer: the address that it came from.

        Returns:
            The session's id; None where the two do not fit.

        Raises:
            TooManyTries: this peer, or somebody with this name, failed too often.
        """
        if self._users is None:
            return None
        whom = f"peer {_network(peer)}", f"name {name}"
        self._tries.begin(*whom)
        password_hash = self._users.verified(name, password)
        if password_hash is None:
            return None
        self._tries.take_back(*whom)
        return self._open(name, password_hash)

    def user_of(self, session_id: str) -> str | None:
        """The user of a session; None where it is over, or the user is gone or has another password since.

        Args:
            session_id: what `redeem` or `sign_in` gave.
        """
        digest = _digest(session_id)
        with self._lock:
            session = self._sessions.get(digest)
            if session is None:
                return None
            changed = self._users is not None and self._users.hash_of(session.user) != session.password_hash
            if changed or session.expires <= self._clock():
                del self._sessions[digest]
                return None
            return session.user

    def sign_out(self, session_id: str) -> None:
        """End a session, if it is one.

        Args:
            session_id: what `redeem` or `sign_in` gave.
        """
        with self._lock:
            self._sessions.pop(_digest(session_id), None)

    def _is_token(self, token: str) -> bool:
        return self._token is not None and hmac.compare_digest(self._token, _digest(token))

    def _open(self, user: str, password_hash: str) -> str:
        session_id, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._sessions = {key: one for key, one in self._sessions.items() if one.expires > now}
            own = [key for key, session in self._sessions.items() if session.user == user]
            for key in own[: max(0, len(own) + 1 - _SESSIONS_EACH)]:
                del self._sessions[key]
            self._sessions[_digest(session_id)] = _Session(user, now + self.session_seconds, password_hash)
        return session_id


class _Tries:
    """Counts failed tries of peers and names, each within a window from its first; digests alone are kept."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failed: OrderedDict[bytes, tuple[float, int]] = OrderedDict()

    def begin(self, *whom: str) -> None:
        """Count a try as failed before it is made: those that run at the same time shall not all pass."""
        keys = [_digest(one) for one in whom]
        with self._lock:
            now = self._clock()
            while self._failed and next(iter(self._failed.values()))[0] + _WINDOW <= now:
                self._failed.popitem(last=False)
            started = [self._failed[key][0] for key in keys if self._failed.get(key, (now, 0))[1] >= _TRIES]
            if started:
                raise TooManyTries(math.ceil(max(started) + _WINDOW - now))
            for key in keys:
                start, count = self._failed.get(key, (now, 0))
                self._failed[key] = start, count + 1
            while len(self._failed) > _COUNTS_KEPT:
                self._failed.popitem(last=False)

    def take_back(self, *whom: str) -> None:
        """The try that was begun did not fail."""
        with self._lock:
            for key in map(_digest, whom):
                start, count = self._failed.get(key, (0.0, 0))
                if count > 1:
                    self._failed[key] = start, count - 1
                else:
                    self._failed.pop(key, None)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _network(peer: str) -> str:
    """Whom an address counts for: who has one of IPv6 has 2^64 of them."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))
