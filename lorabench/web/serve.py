"""The server: the pages of NiceGUI and the API in one app, behind one gate."""

import asyncio
import contextlib
import importlib
import socket
from collections.abc import AsyncIterator, Callable

import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from nicegui import ui
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp

import lorabench
from lorabench.errors import LorabenchError
from lorabench.web.api import api
from lorabench.web.entrance import entrance
from lorabench.web.gate import Gate
from lorabench.web.panels import adapter, command, health, jobs, library, resize, results
from lorabench.web.settings import LOOPBACK, Settings
from lorabench.web.site import Site

__all__ = ["application", "listen", "serve"]

_TIDY_EVERY = 3600.0
_WARM_AFTER = 3.0
_AT_ONCE = 1000
"""Requests at one time; more are told to come again."""
_BODY = 2 * 2**20
"""Bytes of a request, which is in memory whole; an upload is not."""
_SPARE = 2**20
"""Bytes of a request beside what is uploaded."""


def application(site: Site) -> ASGIApp:
    """All of it: nothing of it is reached but through the gate. One a process, for NiceGUI's pages are its own.

    Args:
        site: the server's parts.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_tidy(site)), asyncio.create_task(_warm())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    app = FastAPIOffline(
        title="lorabench",
        version=lorabench.__version__,
        description="The toolkit for LoRA adapters, as `lorabench web` serves it.",
        openapi_url="/api/openapi.json",
        docs_url="/api/docs",
        redoc_url=None,
        static_url="/api/docs-static",
        lifespan=lifespan,
    )
    app.include_router(api(site))
    app.router.routes.extend(entrance(site.access, secure=site.settings.https))
    for panel in (library, adapter, resize, command, health, jobs, results):
        panel.add(site)
    # Between a server and a browser of one machine compressing takes longer than what it saves.
    near = site.settings.host in LOOPBACK and not site.settings.https
    ui.run_with(
        app, title="lorabench", show_welcome_message=False, tailwind=False, reconnect_timeout=10.0,
        gzip_middleware_factory=None if near else _compressed,
    )  # fmt: skip
    larger = {"/api/adapters": site.settings.max_upload + _SPARE}
    return Gate(app, site.access, site.settings.hosts, _BODY, larger)


def _compressed(app: ASGIApp) -> GZipMiddleware:
    return GZipMiddleware(app, minimum_size=500, compresslevel=5)


async def _tidy(site: Site) -> None:
    while True:
        await asyncio.to_thread(site.tidy)
        await asyncio.sleep(_TIDY_EVERY)


async def _warm() -> None:
    """Import what the resizer needs, which takes seconds, once the first page is there."""
    await asyncio.sleep(_WARM_AFTER)
    await asyncio.to_thread(importlib.import_module, "lorabench.adapters.resizing.preview")


def listen(settings: Settings) -> socket.socket:
    """A socket at the address of the settings.

    Raises:
        LorabenchError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind((settings.host, settings.port))
    except OSError as error:
        one.close()
        raise LorabenchError(
            f"--host {settings.host} --port {settings.port} cannot be had: {error.strerror}. Give another --port "
            "(0: any that is free)."
        ) from error
    return one


def serve(site: Site, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until it is told to end.

    Args:
        site: the server's parts.
        listening: as `listen` gives it.
        ready: called when pages are there.

    Raises:
        LorabenchError: another server runs the jobs of its folder.
    """

    class _Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(
        application(site), log_level="warning", access_log=False, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=3, ws_max_size=2**20, limit_concurrency=_AT_ONCE,
    )  # fmt: skip
    site.queue.start()
    try:
        _Server(config).run(sockets=[listening])
    finally:
        site.queue.stop()
