"""All adapters as one table, and the place to bring more."""

import asyncio
import time
from typing import Any

from nicegui import ui
from starlette.requests import Request

from lorabench.web.frame import Here, frame, same_on_a_command_line, table, ways_on
from lorabench.web.shelf import Item
from lorabench.web.site import Site

__all__ = ["add"]

_COLUMNS = {
    "name": "name",
    "valid": "valid",
    "family": "base",
    "rank": "rank",
    "modules": "modules",
    "kib": "KiB",
    "method": "method",
    "origin": "from",
    "changed": "changed",
}
_NUMBERS, _LONG = ("rank", "modules", "kib"), ("family", "method")
_FIRST = 100
_PATIENCE = 0.3
"""Seconds for which headers are read before those that were are shown."""


def add(site: Site) -> None:
    """The panel."""

    @ui.page("/")
    async def page(request: Request) -> None:
        with frame(site, request, "Library") as here:
            _bring(here)
            items = await asyncio.to_thread(here.items)
            # The first pages of the table come with the page, the rest when it is there.
            shown = _table([_row(here, item) for item in items[:_FIRST]])
            if site.settings.folder is not None:
                same_on_a_command_line("adapters", "inspect", site.settings.folder.name)
        await ui.context.client.connected()
        await _fill(here, shown, items)


def _bring(here: Here) -> None:
    """Bytes go to the API, which counts them as they come; nothing of them passes through the page."""
    most = here.site.settings.max_upload
    uploader = ui.element("q-uploader").classes("w-full").mark("bring")
    uploader.props(f"url=/api/adapters field-name=file batch multiple auto-upload flat bordered max-total-size={most}")
    uploader.add_slot("header", _HEADER)
    uploader.on("uploaded", lambda _: ui.navigate.reload())
    uploader.on("failed", lambda event: _refused(event.args), ["xhr"], js_handler=_REASON)
    uploader.on(
        "rejected", lambda _: ui.notify(f"refused: more than {most / 2**20:g} MiB at once", type="negative"), []
    )


_HEADER = """
<div class="row no-wrap items-center q-pa-sm q-gutter-sm">
  <q-spinner v-if="props.isUploading" size="1.5em" />
  <div class="col">
    <div class="q-uploader__title">Bring .safetensors files (with adapter_config.json where there is one)</div>
    <div class="q-uploader__subtitle" role="status">{{ props.uploadSizeLabel }} / {{ props.uploadProgressLabel }}</div>
  </div>
  <q-btn v-if="props.canAddFiles" type="a" icon="add" flat round dense aria-label="Choose files to bring">
    <q-uploader-add-trigger />
  </q-btn>
</div>
"""
"""Quasar's own has no name for its button."""
_REASON = "(info) => emit(info.xhr ? info.xhr.responseText.slice(0, 2000) : '')"
"""The server's words; an event of the browser's cannot be sent whole."""


def _refused(text: Any) -> None:
    import json

    try:
        said = json.loads(str(text))["error"]
    except (ValueError, KeyError, TypeError):
        said = "the upload was broken off; it may be too large"
    ui.notify(said, type="negative", close_button="Close", timeout=0, multi_line=True)


def _table(rows: list[dict[str, Any]]) -> ui.table:
    with ui.row().classes("w-full items-center"):
        search = ui.input("Search").props("clearable dense").classes("grow").mark("search")
        buttons = ui.row().classes("gap-1")
    shown = table(rows, _COLUMNS, key="id", numbers=_NUMBERS, wrapped=_LONG, sortable=True, selection="multiple")
    shown.props("bordered").mark("library")
    shown.bind_filter_from(search, "value", lambda text: text or "")
    shown.add_slot(
        "body-cell-name",
        '<q-td :props="props"><a :href="`/adapter/${props.row.id}`" class="text-primary" '
        'style="display:block;max-width:15rem;overflow:hidden;text-overflow:ellipsis;direction:rtl;text-align:left" '
        ':title="props.value">&lrm;{{ props.value }}</a></q-td>',
    )
    with buttons:
        ways_on(lambda: [str(row["id"]) for row in shown.selected])
    return shown


async def _fill(here: Here, shown: ui.table, items: list[Item]) -> None:
    """Show all, read the headers that nobody has asked for yet, and show them as they come."""
    rows = await asyncio.to_thread(lambda: [_row(here, item) for item in items])
    if len(rows) > len(shown.rows):
        shown.rows = rows
    waiting = [item for item, row in zip(items, rows, strict=True) if "valid" not in row]
    places = {item.id: place for place, item in enumerate(items)}

    def read_some() -> list[Item]:
        until, done = time.monotonic() + _PATIENCE, []
        while waiting and time.monotonic() < until:
            done.append(waiting.pop(0))
            here.site.shelf.row(done[-1])
        return done

    client = ui.context.client
    while waiting and client.has_socket_connection:
        for item in await asyncio.to_thread(read_some):
            if item.id in places:
                shown.rows[places[item.id]] = _row(here, item)
        shown.update()


def _row(here: Here, item: Item) -> dict[str, Any]:
    row = {"id": item.id, "name": item.name, "origin": item.origin, "kib": round(item.size / 1024)}
    row["changed"] = time.strftime("%Y-%m-%d", time.localtime(item.changed))
    said = here.site.shelf.known_row(item)
    if said is None:
        return row
    ranks = said["ranks"] or []
    return row | {
        "valid": "yes" if said["valid"] else "no",
        "family": said["family"] or said["base_model"] or "",
        "rank": f"{ranks[0]}..{ranks[-1]}" if len(ranks) > 1 else said["rank"],
        "modules": said["modules"],
        "method": said["method"] or "",
    }
