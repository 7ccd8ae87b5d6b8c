"""The JSON API under /api: what the panels do, for scripts and other front ends."""

import contextlib
import json
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile as Received
from starlette.exceptions import HTTPException

from lorabench.adapters.metadata.editing import Changes, foresee_edit
from lorabench.adapters.metadata.inspection import inspect
from lorabench.adapters.resizing.rule import ResizeRule
from lorabench.commands.options import from_args
from lorabench.errors import LorabenchError
from lorabench.text import plain
from lorabench.web.archive import zipped
from lorabench.web.queue import Job
from lorabench.web.shelf import Item
from lorabench.web.site import Site
from lorabench.web.tools import TOOLS, Wish, tool
from lorabench.web.uploads import Brought

__all__ = ["EMBEDDED", "MOST", "PRIVATE", "Wanted", "api", "make_rule", "planned_edit", "start"]

MOST = 256
"""Adapters of one job: a training with its checkpoints."""
EMBEDDED = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; "
    "sandbox allow-scripts allow-downloads"
)
"""What a page that a command wrote may do inside a panel: nothing but show itself."""

PRIVATE = ("folder",)
"""What `inspect` says of a file that is the server's own affair."""
_Id = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
_ANY = "application/octet-stream"
_TEXTS = (".html", ".sarif", ".json", ".svg")
"""Files with words in them, in which paths of the server's are names of adapters to whoever reads them."""
_LEAST_ROOM = 16 * 2**20
"""Bytes that a job may write though its user has no more: its answer shall be heard."""
_LONGEST_TEXT = 16 * 2**20
_PAGES = {".html": "text/html", ".svg": "image/svg+xml", ".png": "image/png"}


class Wanted(BaseModel):
    """A command over adapters."""

    model_config = ConfigDict(extra="forbid")

    command: Literal[TOOLS] = Field(description="one of /api/commands")  # type: ignore[valid-type]
    adapters: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1, max_length=MOST, description="their ids")
    options: dict[str, Any] = Field(default_factory=dict, max_length=64, description="option -> value")


def _errors(site: Site) -> type[APIRoute]:
    class Errors(APIRoute):
        """What the toolkit refuses is an answer of its own: 400, or 404 where it names nothing that is there."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def handle(request: Request) -> Response:
                try:
                    return await handler(request)
                except RequestValidationError as error:
                    # Without what came, which may be long, or no JSON: NaN, half a surrogate.
                    kept = [{name: one[name] for name in ("type", "loc", "msg")} for one in error.errors()]
                    return Response(json.dumps({"detail": kept}), 422, media_type="application/json")
                except HTTPException as error:  # a body that cannot be parsed
                    return JSONResponse({"error": f"what was sent cannot be read: {error.detail}"}, error.status_code)
                except LorabenchError as error:
                    missing = str(error).startswith(("there is no ", "no such "))
                    return JSONResponse({"error": site.named(str(error))}, 404 if missing else 400)

            return handle

    return Errors


def start(site: Site, user: str, wanted: Wanted) -> Job:
    """Put a command into the queue.

    Raises:
        LorabenchError: an option or an adapter that is not there, or the queue is full.
    """
    room = site.settings.quota - site.used(user)
    if room < 0:
        raise LorabenchError("your room on this server is used up. Remove uploads or jobs first.")
    items = [site.shelf.item(user, item_id) for item_id in wanted.adapters]
    wish = tool(wanted.command).wish(
        [item.input for item in items],
        wanted.options,
        lambda item_id: site.shelf.item(user, item_id).input,
        site.models.find,
    )
    title = f"{wanted.command} {', '.join(item.name for item in items[:3])}{', …' if len(items) > 3 else ''}"
    asked = {"adapters": wanted.adapters, "options": wanted.options}
    return site.queue.add(user, title, wish.words, wish.shown, wish.inputs, max(room, _LEAST_ROOM), asked)


def _job_data(site: Site, job: Job) -> dict[str, Any]:
    """A job for JSON: no path of the server's."""
    names = ("id", "title", "shown", "made", "started", "ended", "state", "code", "asked")
    return {name: getattr(job, name) for name in names} | {"error": job.error and site.named(job.error)}


def api(site: Site) -> APIRouter:
    """The routes over a server's parts."""
    router = APIRouter(prefix="/api", route_class=_errors(site), responses=_failures())
    _add_adapters(router, site)
    _add_one_adapter(router, site)
    _add_jobs(router, site)
    _add_notices(router, site)

    @router.get("/runs")
    def runs() -> list[dict[str, Any]]:
        """Runs and sweeps of the benchmark."""
        hidden = ("folder",)
        return [{name: value for name, value in asdict(run).items() if name not in hidden} for run in site.runs.all()]

    @router.get("/models")
    def models() -> list[str]:
        """Names of the models that `predict` can ask."""
        return [model.name for model in site.models.all()]

    @router.get("/runs/{run_id}/page", response_class=HTMLResponse)
    def page(run_id: _Id) -> HTMLResponse:
        """The report of one."""
        return HTMLResponse(site.named(site.runs.page(run_id)), headers={"Content-Security-Policy": EMBEDDED})

    return router


def _failures() -> dict[int | str, dict[str, Any]]:
    words = {400: "cannot be used", 401: "not signed in", 403: "from another site", 404: "not there"}
    return {code: {"description": text} for code, text in words.items()}


def _user(request: Request) -> str:
    return str(request.state.user)


def _add_adapters(router: APIRouter, site: Site) -> None:
    @router.get("/adapters")
    def adapters(
        request: Request,
        response: Response,
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> list[dict[str, Any]]:
        """The adapters that you may choose from, with what their headers say; X-Total-Count says how many there are."""
        items = site.shelf.items(_user(request))
        response.headers["X-Total-Count"] = str(len(items))
        return [_item_data(site, item) for item in items[offset : offset + limit]]

    @router.post("/adapters", status_code=201, responses={413: {"description": "too large"}}, openapi_extra=_MULTIPART)
    async def bring(request: Request) -> list[str]:
        """Bring adapters, or one with its adapter_config.json; answers their ids."""
        user = _user(request)
        length = request.headers.get("content-length", "")
        room = site.uploads.room(user, int(length) if length.isdecimal() else None, lambda: site.used(user))
        with contextlib.ExitStack() as stack:
            await run_in_threadpool(stack.enter_context, room)
            async with request.form(max_files=200, max_fields=8) as form:
                files = [one for one in form.getlist("file") if isinstance(one, Received)]
                brought = [Brought(one.filename or "", one.file) for one in files]
                added = await run_in_threadpool(site.uploads.add, user, brought)
        items = {item.path: item.id for item in await run_in_threadpool(site.shelf.items, user)}
        return [items[upload.path] for upload in added]


def _add_one_adapter(router: APIRouter, site: Site) -> None:
    @router.get("/adapters/{adapter_id}")
    def adapter(request: Request, adapter_id: _Id) -> dict[str, Any]:
        """What one says of itself, as `inspect --json` has it."""
        item = site.shelf.item(_user(request), adapter_id)
        found: dict[str, Any] = plain(inspect(item.path).as_dict())
        for name in PRIVATE:
            found["file_info"].pop(name, None)
        return {"id": item.id, "name": item.name, "origin": item.origin} | found

    @router.delete("/adapters/{adapter_id}", status_code=204)
    def remove(request: Request, adapter_id: _Id) -> None:
        """Remove an upload of yours."""
        site.shelf.remove(_user(request), adapter_id)

    @router.get("/adapters/{adapter_id}/file", response_class=FileResponse)
    def file(request: Request, adapter_id: _Id) -> FileResponse:
        """The file itself."""
        item = site.shelf.item(_user(request), adapter_id)
        return FileResponse(item.path, filename=item.path.name, media_type=_ANY)

    @router.get("/adapters/{adapter_id}/archive", response_class=StreamingResponse)
    def archive(request: Request, adapter_id: _Id) -> StreamingResponse:
        """The file and the adapter_config.json that it belongs to, as a ZIP."""
        item = site.shelf.item(_user(request), adapter_id)
        files = {
            name: site.named(path.read_text("utf-8", "replace")).encode() if path.suffix == ".json" else path
            for name, path in item.files.items()
        }
        how = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(item.input.stem)}.zip"}
        return StreamingResponse(zipped(files), media_type="application/zip", headers=how)

    @router.post("/adapters/{adapter_id}/foresee")
    async def foresee(request: Request, adapter_id: _Id, rule: dict[str, Any]) -> dict[str, Any]:
        """What a resize would cost, before anything is written; the rule as the options of `resize`."""
        user = _user(request)
        item = await run_in_threadpool(site.shelf.item, user, adapter_id)
        preview = await site.previews.of(user, item)
        return asdict(await run_in_threadpool(lambda: preview.under(make_rule(item, rule))))

    @router.post("/adapters/{adapter_id}/changes")
    def changes(request: Request, adapter_id: _Id, edit: dict[str, Any]) -> dict[str, Any]:
        """What an edit of its metadata would change, before it is written; the edit as the options of `inspect`."""
        item = site.shelf.item(_user(request), adapter_id)
        wish = tool("inspect").wish([item.input], edit)
        if not wish.writes:
            raise LorabenchError(f"{', '.join(edit) or 'no option'}: changes nothing. Say redact, set or unset.")
        planned: dict[str, Any] = plain(asdict(planned_edit(item, wish)))
        return planned


def planned_edit(item: Item, wish: Wish) -> Changes:
    """What an edit would change.

    Args:
        item: the adapter.
        wish: `inspect`, with options that write.

    Raises:
        LorabenchError: an entry that is not there, or a value that cannot be written.
    """
    asked = wish.parsed()
    return foresee_edit(item.path, values=dict(asked.set), unset=asked.unset, redacted=asked.redact)


def make_rule(item: Item, options: dict[str, Any]) -> ResizeRule:
    """A resize's rule by the command's options.

    Raises:
        LorabenchError: an unknown option, or a value out of its range.
    """
    known = {name: value for name, value in options.items() if name in ResizeRule.__dataclass_fields__}
    return from_args(ResizeRule, tool("resize").wish([item.input], known | {"dry_run": True}).parsed())


def _item_data(site: Site, item: Item) -> dict[str, Any]:
    return {"id": item.id, "origin": item.origin, "changed": item.changed} | dict(site.shelf.row(item))


def _add_jobs(router: APIRouter, site: Site) -> None:
    @router.get("/commands")
    def commands() -> list[dict[str, Any]]:
        """The commands that a job may be, with their options."""
        return [plain(asdict(tool(name))) for name in TOOLS]

    @router.post("/jobs", status_code=202)
    def add(request: Request, wanted: Wanted) -> dict[str, Any]:
        """Start a command; it waits for its turn."""
        return _job_data(site, start(site, _user(request), wanted))

    @router.get("/jobs")
    def jobs(request: Request) -> list[dict[str, Any]]:
        """Yours, the newest first."""
        return [_job_data(site, job) for job in site.queue.jobs(_user(request))]

    @router.get("/jobs/{job_id}")
    def job(request: Request, job_id: _Id) -> dict[str, Any]:
        """One, with its progress, its answer and the names of its files."""
        user = _user(request)
        found = site.queue.job(user, job_id)
        return _job_data(site, found) | {
            "progress": site.queue.progress(user, job_id),
            "answer": site.answer(found),
            "files": site.queue.files(user, job_id),
        }

    @router.post("/jobs/{job_id}/cancel")
    def cancel(request: Request, job_id: _Id) -> dict[str, Any]:
        """End one."""
        return _job_data(site, site.queue.cancel(_user(request), job_id))

    @router.delete("/jobs/{job_id}", status_code=204)
    def forget(request: Request, job_id: _Id) -> None:
        """Remove one that has ended, and its files."""
        site.queue.forget(_user(request), job_id)

    @router.get("/jobs/{job_id}/files/{name:path}", response_class=FileResponse)
    def file(request: Request, job_id: _Id, name: str, show: bool = False) -> Response:
        """One of its files; with `show` pages and pictures as such."""
        user = _user(request)
        path = site.queue.file(user, job_id, name)
        kind = _PAGES.get(path.suffix, _ANY) if show else _ANY
        how = {"Content-Security-Policy": EMBEDDED} if kind != _ANY else {}
        if path.suffix in _TEXTS and path.stat().st_size < _LONGEST_TEXT:
            if kind == _ANY:
                how["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(path.name)}"
            text = site.named(path.read_text("utf-8"))
            return Response(text, media_type=kind, headers=how)
        return FileResponse(path, filename=path.name if kind == _ANY else None, media_type=kind, headers=how)


def _add_notices(router: APIRouter, site: Site) -> None:
    @router.get("/notices")
    def notices(request: Request) -> list[dict[str, Any]]:
        """Jobs of yours that have ended, the last one first, and whether you have looked at that."""
        user = _user(request)
        unread = {job.id for job in site.notices.unread(user)}
        return [_job_data(site, job) | {"unread": job.id in unread} for job in site.notices.of(user)]

    @router.post("/notices/read", status_code=204)
    def read(request: Request) -> None:
        """You have looked at all of them."""
        site.notices.read(_user(request))


_MULTIPART: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            }
        },
    }
}
