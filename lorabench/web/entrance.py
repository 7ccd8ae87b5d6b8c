"""The door: a form to sign in, the address that is printed at the start, and the way out.

The session's cookie goes along with what this very site asks for alone (SameSite=Strict). A browser that comes from
another site does not send it yet, not even behind a redirection; it is shown a page that leads on at once, and what
that page asks for is of this site.
"""

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl

import anyio
import anyio.to_thread
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from lorabench.web.access import Access, TooManyTries
from lorabench.web.gate import OPEN_PATHS, SESSION_COOKIE, peer_of, session_of

__all__ = ["entrance", "local_path"]

_PAGE = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
).get_template("sign_in.html.j2")
_LOCAL = re.compile(r"(?:/[\w.~!$&'()*+,;=:@%-]+)*/?(?:\?[\w.~!$&'()*+,;=:@%/?-]*)?", re.ASCII)
_LONGEST_PATH = 2048
_AT_ONCE = 2
_WRONG = {
    True: "This name and this password do not belong together.",
    False: "This token is not the right one, or it was used before.",
}
_NOTE = {
    True: "It stands in the address that was printed as the server started, and is good for one sign-in.",
    False: "The one that the server was started with.",
}


def entrance(access: Access, secure: bool) -> list[Route]:
    """The routes of the door.

    Args:
        access: lets people in.
        secure: whether browsers reach the page by https alone; the cookie is for https alone then.
    """
    door = _Door(access, secure)
    return [
        Route("/sign-in", door.show, methods=["GET"]),
        Route("/sign-in", door.sign_in, methods=["POST"]),
        Route("/enter", door.enter, methods=["GET"]),
        Route("/sign-out", door.sign_out, methods=["POST"]),
    ]


def local_path(text: str) -> str:
    """Where somebody is led after the sign-in: a path of this site, "/" for everything else.

    Args:
        text: what an address or a form says.

    >>> local_path("/library?page=2"), local_path("//evil.example"), local_path("https://evil.example")
    ('/library?page=2', '/', '/')
    """
    fits = len(text) <= _LONGEST_PATH and text.startswith("/") and _LOCAL.fullmatch(text)
    return text if fits and text.partition("?")[0] not in {*OPEN_PATHS, "/sign-out"} else "/"


class _Door:
    def __init__(self, access: Access, secure: bool) -> None:
        self._access = access
        self._secure = secure
        # Who waits for a password to be tried waits outside the threads, which others need.
        self._note = _NOTE[access.first_token is not None]
        self._limiter = anyio.CapacityLimiter(_AT_ONCE)

    async def show(self, request: Request) -> Response:
        target = local_path(request.query_params.get("next", "/"))
        session = session_of(request.headers)
        if _is_from_elsewhere(request) or (session is not None and self._access.user_of(session) is not None):
            return self._lead_on(request, target)
        return self._form(target)

    async def sign_in(self, request: Request) -> Response:
        fields = await _fields(request)
        target, name = local_path(fields.get("next", "/")), fields.get("name", "")
        try:
            if self._access.by_password:
                credentials = name, fields.get("password", ""), peer_of(request.scope)
                session = await anyio.to_thread.run_sync(self._access.sign_in, *credentials, limiter=self._limiter)
            else:
                session = self._access.redeem(fields.get("token", "").strip(), peer_of(request.scope))
        except TooManyTries as error:
            return self._refusal(error, target, name)
        if session is None:
            return self._form(target, 401, _WRONG[self._access.by_password], name)
        return self._let_in(request, session, target)

    async def enter(self, request: Request) -> Response:
        # What looks ahead, such as a chat's preview of a link, must not use the token up.
        if request.method == "HEAD" or "prefetch" in request.headers.get("sec-purpose", ""):
            return Response(status_code=503)
        try:
            session = self._access.redeem(request.query_params.get("token", ""), peer_of(request.scope))
        except TooManyTries as error:
            return self._refusal(error, "/", "")
        if session is None:
            return self._form("/", 401, _WRONG[False])
        return self._let_in(request, session, "/")

    async def sign_out(self, request: Request) -> Response:
        self._end_session(request)
        answer = RedirectResponse("/sign-in", 303)
        answer.delete_cookie(SESSION_COOKIE, path="/", secure=self._secure, httponly=True, samesite="strict")
        return answer

    def _let_in(self, request: Request, session: str, target: str) -> Response:
        self._end_session(request)
        answer = self._lead_on(request, target)
        answer.set_cookie(
            SESSION_COOKIE,
            session,
            max_age=self._access.session_seconds,
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="strict",
        )
        return answer

    def _end_session(self, request: Request) -> None:
        session = session_of(request.headers)
        if session is not None:
            self._access.sign_out(session)

    def _lead_on(self, request: Request, target: str) -> Response:
        return self._page(200, onward=target) if _is_from_elsewhere(request) else RedirectResponse(target, 303)

    def _refusal(self, error: TooManyTries, target: str, name: str) -> Response:
        return self._form(target, 429, str(error), name, {"Retry-After": str(error.seconds)})

    def _form(
        self, target: str, status: int = 200, wrong: str = "", name: str = "", headers: Mapping[str, str] | None = None
    ) -> Response:
        return self._page(status, headers, next=target, wrong=wrong, name=name[:64])

    def _page(self, status: int, headers: Mapping[str, str] | None = None, **values: str) -> Response:
        nonce = secrets.token_urlsafe(16)
        by_password = self._access.by_password
        blank = {
            "onward": "",
            "next": "/",
            "wrong": "",
            "name": "",
            "note": self._note,
        }
        text = _PAGE.render(nonce=nonce, by_password=by_password, **{**blank, **values})
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; "
            "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )
        content = text.encode(errors="replace")
        return HTMLResponse(content, status, {"Content-Security-Policy": policy, **(headers or {})})


async def _fields(request: Request) -> dict[str, str]:
    """The fields of a form; none where it is no form of this page's."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return {}
    try:
        return dict(parse_qsl((await request.body()).decode("ascii"), keep_blank_values=True, max_num_fields=10))
    except ValueError:
        return {}


def _is_from_elsewhere(request: Request) -> bool:
    """Whether another site leads here, so that the browser left the cookie out."""
    return request.headers.get("sec-fetch-site") == "cross-site"
