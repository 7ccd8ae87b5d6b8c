"""One adapter: what it says of itself, whether it is whole, and its metadata to be edited."""

import json
from collections.abc import Mapping
from typing import Any

from nicegui import run, ui
from starlette.requests import Request

from lorabench.adapters.metadata.inspection import Inspection, inspect
from lorabench.errors import LorabenchError
from lorabench.text import plain
from lorabench.web.api import PRIVATE
from lorabench.web.frame import PANELS, Here, frame, telling
from lorabench.web.panels.command import CommandPanel
from lorabench.web.shelf import Item
from lorabench.web.site import Site

__all__ = ["add"]

_BLOCKS = {"file_info": "File", "model_info": "Model", "training_info": "Training", "architecture_info": "Architecture"}
_LONGEST = 300
_NEXT = ("/pca", "/resize", "/merge", "/compare", "/convert", "/plot", "/audit", "/advise")


def add(site: Site) -> None:
    """The panel."""

    @ui.page("/adapter/{item_id}")
    async def page(request: Request, item_id: str) -> None:
        with frame(site, request, "Adapter") as here:
            try:
                item = here.item(item_id)
                found = await run.io_bound(inspect, item.path)
            except LorabenchError as error:
                ui.label(here.words(error)).classes("text-negative")
                return
            _shown(here, item, found)


def _shown(here: Here, item: Item, found: Inspection) -> None:
    ui.label(item.name).classes("text-lg break-all")
    with ui.row().classes("gap-1"):
        for path in _NEXT:
            title, icon = PANELS[path]
            ui.button(title, icon=icon, on_click=lambda path=path: ui.navigate.to(f"{path}?of={item.id}")).props(
                "flat dense no-caps"
            )
        ui.link("Download", f"/api/adapters/{item.id}/file").props("download").classes("self-center px-2")
        if item.origin == "upload":
            ui.button("Remove", icon="delete", on_click=lambda: _remove(here, item)).props("flat dense no-caps")
    _validation(found.validation_info)
    for name, title in _BLOCKS.items():
        _block(title, getattr(found, name))
    with ui.expansion("Raw metadata", icon="data_object").classes("w-full"):
        ui.code(json.dumps(plain(dict(found.raw_metadata)), indent=1), language="json").classes("w-full")
    with ui.expansion(f"Modules ({len(found.modules)})", icon="view_list").classes("w-full"):
        _modules(found)
    with ui.expansion("Edit the metadata, or redact what tells of people, places and data", icon="edit").classes(
        "w-full"
    ):
        CommandPanel(here, "inspect", [item.id], ("modules", "hashes", "values", "strict", "tags")).finish()


def _remove(here: Here, item: Item) -> None:
    with telling(here):
        here.site.shelf.remove(here.user, item.id)
        ui.navigate.to("/")


def _validation(said: Mapping[str, Any]) -> None:
    valid = bool(said["valid"])
    with ui.card().classes("w-full").props("flat bordered"):
        ui.badge("valid" if valid else "not valid", color="positive" if valid else "negative")
        for error in said["errors"]:
            ui.label(str(error)).classes("text-negative")
        for warning in said["warnings"]:
            ui.label(str(warning)).classes("text-warning")
        for kind, keys in said["unsupported"].items():
            ui.label(f"not analysed, {kind}: {len(keys)} tensors")


def _block(title: str, said: Mapping[str, Any]) -> None:
    rows = [
        {"name": name.replace("_", " "), "value": _text(entry["value"]), "source": str(entry["source"])}
        for name, entry in said.items()
        if name not in PRIVATE
    ]
    ui.label(title).classes("text-lg font-bold").props('role=heading aria-level="2"')
    columns = [{"name": name, "label": name, "field": name, "align": "left"} for name in ("name", "value", "source")]
    ui.table(rows=rows, columns=columns, row_key="name").classes("w-full").props("dense wrap-cells flat")


def _modules(found: Inspection) -> None:
    rows = [{name: _text(value) for name, value in plain(module).items()} for module in found.modules]
    names = list(rows[0]) if rows else []
    columns = [{"name": name, "label": name, "field": name, "align": "left", "sortable": True} for name in names]
    ui.table(rows=rows, columns=columns, row_key=names[0] if names else "id", pagination=25).classes("w-full")


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
