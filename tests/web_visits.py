"""An app with a bit of everything behind the gate, and visitors of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from lorabench.web.access import Access
from lorabench.web.entrance import entrance
from lorabench.web.gate import SESSION_COOKIE, Gate

TOKEN, PASSWORD = "t" * 32, "correct horse"
HOST = "127.0.0.1:8080"
OWN = {"Origin": f"http://{HOST}"}
HTML = {"Accept": "text/html,application/xhtml+xml"}
MAX_BODY = 100_000
KEPT = {"Cache-Control": "public, max-age=9"}
WRITES = ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
SCRIPT, PICTURE = "/_nicegui/3.18.0/static/nicegui.js", "/_nicegui/auto/media/x/mine.svg"


async def home(request: Request) -> Response:
    return HTMLResponse(f"hello {request.state.user}", headers=KEPT)


async def report(_: Request) -> Response:
    own = {"Content-Security-Policy": "sandbox; frame-ancestors 'self'", "Server": "mine", "X-Powered-By": "me"}
    return HTMLResponse("a report", headers=own)


async def script(_: Request) -> Response:
    return Response("1", media_type="text/javascript", headers=KEPT)


async def picture(_: Request) -> Response:
    return Response("<svg/>", media_type="image/svg+xml", headers=KEPT)


async def body(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def me(request: Request) -> Response:
    return JSONResponse({"user": request.state.user})


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(f"{socket.state.user}: {await socket.receive_text()}")
    except WebSocketDisconnect:
        return


async def passed_on(request: Request, call_next: Any) -> Response:
    answer: Response = await call_next(request)
    return answer


def site(access: Access, secure: bool = False) -> Gate:
    """The app behind the gate."""
    routes = [
        Route("/", home, methods=["GET", *WRITES]),
        Route("/report", report),
        Route(SCRIPT, script),
        Route(PICTURE, picture),
        Route("/body", body, methods=["POST"]),
        Route("/api/body", body, methods=["POST"]),
        Route("/api/me", me),
        WebSocketRoute("/ws", echo),
    ]
    app = FastAPI(routes=[*entrance(access, secure), *routes])
    app.add_middleware(BaseHTTPMiddleware, dispatch=passed_on)  # NiceGUI has such ones
    return Gate(app, access, {HOST, "lora.example", "[::1]"}, MAX_BODY)


class Visitor:
    """Asks as a browser or a program does; keeps no cookies but those it is given."""

    def __init__(self, gate: Gate, session: str | None = None, peer: str = "1.1.1.1", scheme: str = "http") -> None:
        self.gate, self.peer, self.base = gate, peer, f"{scheme}://{HOST}"
        self.cookies = {} if session is None else {"Cookie": f"{SESSION_COOKIE}={session}"}

    def ask(self, method: str, path: str, headers: Any = None, **more: Any) -> httpx.Response:
        async def asking() -> httpx.Response:
            transport = httpx.ASGITransport(self.gate, client=(self.peer, 1))
            async with httpx.AsyncClient(transport=transport, base_url=self.base) as client:
                given = headers if isinstance(headers, list) else [*self.cookies.items(), *(headers or {}).items()]
                return await client.request(method, path, headers=given, **more)

        return asyncio.run(asking())

    def get(self, path: str, headers: Any = None) -> httpx.Response:
        return self.ask("GET", path, headers)

    def post(self, path: str, headers: Any = None, **more: Any) -> httpx.Response:
        return self.ask("POST", path, OWN if headers is None else headers, **more)


def websocket(gate: Gate, headers: dict[str, str], heard: list[Any], path: str = "/ws", **more: Any) -> list[Any]:
    """What a websocket is sent; an entry of `heard` that can be called is called instead."""
    waiting, sent = [{"type": "websocket.connect"}, *heard], []

    async def receive() -> Any:
        while waiting and callable(waiting[0]):
            waiting.pop(0)()
        return waiting.pop(0) if waiting else {"type": "websocket.disconnect", "code": 1000}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(gate(websocket_scope(headers, path, **more), receive, send))
    return sent


def websocket_scope(headers: dict[str, str], path: str = "/ws", **more: Any) -> dict[str, Any]:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {
        "type": "websocket", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": raw,
        "scheme": "ws", "client": ("1.1.1.1", 1), "subprotocols": [], "root_path": "", **more,
    }  # fmt: skip


def text(content: str) -> dict[str, str]:
    return {"type": "websocket.receive", "text": content}


def chunks(*sizes: int) -> Any:
    async def parts() -> AsyncIterator[bytes]:
        for size in sizes:
            yield b"x" * size

    return parts()
