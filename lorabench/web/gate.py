"""What every request passes before it reaches a page: host, path, origin, user and size, in this order.

It is a plain ASGI middleware around the whole app, so nothing that is mounted in it can be reached otherwise. What goes
back gets the headers of security.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorabench.errors import LorabenchError
from lorabench.web.access import Access, TooManyTries

__all__ = [
    "DATA_POLICY",
    "MOST_WEBSOCKETS",
    "OPEN_PATHS",
    "PAGE_POLICY",
    "SESSION_COOKIE",
    "Gate",
    "peer_of",
    "session_of",
]

SESSION_COOKIE = "lorabench_session"
OPEN_PATHS = frozenset({"/sign-in", "/enter"})
"""What is shown without a session."""

# Vue compiles templates in the browser, NiceGUI's page has scripts and styles in it: none of the unsafe ones can go.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; frame-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Of a page that brings no policy of its own."""
DATA_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Of all that is no page, such as a picture or JSON: should a browser show it as one, it can do nothing."""
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser sends "Origin: null" along with forms
    "X-Content-Type-Options": "nosniff",
}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_BAD_PATH = re.compile(r"[\x00-\x1f\x7f\\]|%(?:00|2f|5c|2e)|//|/\.{1,2}(?:/|$)", re.IGNORECASE)
_HIDDEN_IN_PATH = re.compile(rb"%(?:00|2f|5c)", re.IGNORECASE)
_STATIC = re.compile(r"/_nicegui/\d[^/]*/(?:static|libraries|components|esm|resources)/")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_LARGEST_OF_STRANGERS = 16 * 1024
_POLICY_VIOLATION = 1008
MOST_WEBSOCKETS = 100
"""Of one user at a time, each an open page: the server has a thousand connections for all."""


class _Refused(Exception):  # noqa: N818  # it never leaves this module
    """A request goes no further."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers or {}


class Gate:
    """Lets through what a signed-in user asks of this page, and says in `request.state.user` who that is.

    Args:
        app: the whole app.
        access: knows sessions and tokens.
        hosts: names that the page is reached by; "name:port" allows this port alone, "name" any.
        max_body: bytes that a request may bring.
        larger: path -> bytes that a request to it may bring, of paths that do not keep what comes in memory.

    Raises:
        LorabenchError: no hosts are given, or one is none.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        hosts: Collection[str],
        max_body: int,
        larger: Mapping[str, int] | None = None,
    ) -> None:
        self.app = app  # NiceGUI looks for it by this name
        self._access = access
        self._hosts = frozenset(host.lower() for host in hosts)
        self._websockets: Counter[str | None] = Counter()
        self._max_body, self._larger = max_body, dict(larger or {})
        bad = [host for host in hosts if not _HOST.fullmatch(host.lower())]
        if bad or not hosts:
            raise LorabenchError(f"hosts={', '.join(bad) or None}: names or addresses are needed, a port behind or not")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge one request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        send = _hardened(scope, send)
        headers = Headers(scope=scope)
        try:
            host = self._host(headers)
            _check_path(scope)
            user = self._user(scope, headers)
            bearer = user is not None and session_of(headers) is None
            if scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD"):
                _check_origin(scope, headers, host, bearer)
            self._check_user(scope, headers, user)
            limit = self._larger.get(scope["path"], self._max_body)
            limit = limit if user is not None else min(limit, _LARGEST_OF_STRANGERS)
            _check_length(headers, limit)
            self._check_count(scope, user)
        except _Refused as refused:
            await _refuse(refused, scope, receive, send)
            return
        scope["state"] = {**scope.get("state", {}), "user": user}
        if scope["type"] == "websocket":
            self._websockets[user] += 1
            try:
                await self._watched(scope, receive, send, session_of(headers) or "")
            finally:
                self._websockets[user] -= 1
        else:
            await _counted(self.app, scope, receive, send, limit)

    def _host(self, headers: Headers) -> str:
        """Of a name that somebody else's DNS leads here, a browser sends that name."""
        given = [host.lower() for host in headers.getlist("host")]
        match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        if match is None or not {match[0], match[1]} & self._hosts:
            raise _Refused(421, "This server is not known by this name.")
        return match[0]

    def _user(self, scope: Scope, headers: Headers) -> str | None:
        authorization = headers.getlist("authorization")
        if scope["type"] == "websocket" or not _is_api(scope) or "cookie" in headers or len(authorization) != 1:
            session = session_of(headers)
            return None if session is None else self._access.user_of(session)
        kind, _, token = authorization[0].partition(" ")
        if kind.lower() != "bearer":
            return None
        try:
            return self._access.bearer(token.strip(), peer_of(scope))
        except TooManyTries as error:
            raise _Refused(429, str(error), {"Retry-After": str(error.seconds)}) from error

    def _check_user(self, scope: Scope, headers: Headers, user: str | None) -> None:
        if user is not None or (scope["type"] == "http" and scope["path"] in OPEN_PATHS):
            return
        asks_for_page = "text/html" in headers.get("accept", "") and scope.get("method") in ("GET", "HEAD")
        if not asks_for_page or _is_api(scope):
            raise _Refused(401, "Sign in first, at /sign-in.", {"WWW-Authenticate": "Bearer"} if _is_api(scope) else {})
        query = f"?{scope['query_string'].decode('latin-1')}" if scope.get("query_string") else ""
        wanted = quote(scope["path"]) + query
        target = "/sign-in" if wanted == "/" else f"/sign-in?next={quote(wanted, safe='/')}"
        raise _Refused(303, "Sign in first.", {"Location": target})

    def _check_count(self, scope: Scope, user: str | None) -> None:
        if scope["type"] == "websocket" and self._websockets[user] >= MOST_WEBSOCKETS:
            raise _Refused(429, f"{MOST_WEBSOCKETS} pages are open, the most of one user.")

    async def _watched(self, scope: Scope, receive: Receive, send: Send, session: str) -> None:
        """A websocket ends with its session: it may stay open for days."""
        user, closed = scope["state"]["user"], False

        async def is_over() -> bool:
            nonlocal closed
            if not closed and self._access.user_of(session) != user:
                closed = True
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return closed

        async def receive_watched() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive" and await is_over():
                return {"type": "websocket.disconnect", "code": _POLICY_VIOLATION}
            return message

        async def send_watched(message: Message) -> None:
            if not await is_over():
                await send(message)

        await self.app(scope, receive_watched, send_watched)


def session_of(headers: Headers) -> str | None:
    """The session that the cookie of a request names; None where there is none, or more than one.

    Args:
        headers: of the request.
    """
    pairs = (pair.partition("=") for line in headers.getlist("cookie") for pair in line.split(";"))
    values = [value.strip() for name, _, value in pairs if name.strip() == SESSION_COOKIE]
    # A neighbour on another port of this host can set a second one, and may not choose which counts.
    return values[0] if len(values) == 1 else None


def peer_of(scope: Scope) -> str:
    """The address that a request comes from; empty where there is none.

    Args:
        scope: of the request.
    """
    client = scope.get("client")
    return str(client[0]) if client else ""


def _is_api(scope: Scope) -> bool:
    path: str = scope["path"]
    return path == "/api" or path.startswith("/api/")


def _check_path(scope: Scope) -> None:
    """A path that two parts of the server may read in two ways is read by none."""
    raw: bytes = scope.get("raw_path") or b""
    path: str = scope["path"]
    if not path.startswith("/") or _BAD_PATH.search(path) or _HIDDEN_IN_PATH.search(raw) or b"\\" in raw:
        raise _Refused(400, "This path is none.")


def _check_origin(scope: Scope, headers: Headers, host: str, bearer: bool) -> None:
    """What changes something comes from a page of this very server, or from no browser at all."""
    if headers.get("sec-fetch-site") == "cross-site":
        raise _Refused(403, "Another site asks for this.")
    scheme = "https" if scope["scheme"] in ("https", "wss") else "http"
    own = f"{scheme}://{host}".removesuffix(_DEFAULT_PORTS[scheme])
    origins = [origin.lower().removesuffix(_DEFAULT_PORTS[scheme]) for origin in headers.getlist("origin")]
    if origins != [own] and not (bearer and origins == []):
        raise _Refused(403, "The header Origin is missing, or names another site.")


def _check_length(headers: Headers, limit: int) -> None:
    lengths = headers.getlist("content-length")
    if any(not re.fullmatch("[0-9]{1,18}", length) for length in lengths) or len(lengths) > 1:
        raise _Refused(400, "The header Content-Length is none.")
    if lengths and int(lengths[0]) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> _Refused:
    # Without "close" the server would read on to the end, to find the next request.
    return _Refused(413, f"At most {limit} bytes are taken at once.", {"Connection": "close"})


async def _refuse(refused: _Refused, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": refused.reason})
        return
    answer: Response
    if refused.status == 303:
        answer = RedirectResponse(refused.headers["Location"], 303)
    elif _is_api(scope):
        answer = JSONResponse({"error": refused.reason}, refused.status, refused.headers)
    else:
        answer = PlainTextResponse(refused.reason, refused.status, refused.headers)
    await answer(scope, receive, send)


async def _counted(app: ASGIApp, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
    """Count a body as it comes: one that is sent in chunks has no length to look at before."""
    size, answered, refused = 0, False, False

    async def receive_counted() -> Message:
        nonlocal size, refused
        message = await receive()
        size += len(message.get("body", b"")) if message["type"] == "http.request" else 0
        if size <= limit:
            return message
        if not refused and not answered:
            await _refuse(_too_large(limit), scope, receive, send)
        refused = True
        return {"type": "http.disconnect"}

    async def send_counted(message: Message) -> None:
        nonlocal answered
        answered = True
        if not refused:
            await send(message)

    try:
        await app(scope, receive_counted, send_counted)
    except ClientDisconnect:
        if not refused:
            raise


def _hardened(scope: Scope, send: Send) -> Send:
    """Add the headers of security to what is sent."""

    async def send_hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            _harden(headers, scope["path"])
            message = {**message, "headers": headers.raw}
        await send(message)

    return send_hardened


def _harden(headers: MutableHeaders, path: str) -> None:
    is_page = headers.get("content-type", "").startswith("text/html")
    policy = headers.setdefault("Content-Security-Policy", PAGE_POLICY if is_page else DATA_POLICY)
    headers["X-Frame-Options"] = "DENY" if "frame-ancestors 'none'" in policy else "SAMEORIGIN"
    for name, value in _HEADERS.items():
        headers[name] = value
    if not _STATIC.match(path):
        headers["Cache-Control"] = "no-store"
    for name in ("server", "x-powered-by"):
        if name in headers:
            del headers[name]
