"""One adapter: what it says of itself, whether it is whole, and its metadata to be edited."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui
from starlette.requests import Request

from lorabench.adapters.metadata.editing import Changes
from lorabench.adapters.metadata.inspection import Inspection, inspect
from lorabench.errors import LorabenchError
from lorabench.text import counted, plain
from lorabench.web.api import PRIVATE, planned_edit
from lorabench.web.frame import Here, downloads, frame, same_on_a_command_line, table, telling, ways_on
from lorabench.web.panels.command import CommandPanel
from lorabench.web.shelf import Item
from lorabench.web.site import Site

__all__ = ["add"]

_BLOCKS = {"file_info": "File", "model_info": "Model", "training_info": "Training", "architecture_info": "Architecture"}
_LOOKS = ("modules", "hashes", "values", "strict", "tags")
"""Options of `inspect` that change nothing in the file."""
_LONGEST = 300


def add(site: Site) -> None:
    """The panel."""

    @ui.page("/adapter/{item_id}")
    async def page(request: Request, item_id: str) -> None:
        with frame(site, request, "Adapter") as here:
            try:
                item = here.item(item_id)
                found = await asyncio.to_thread(inspect, item.path)
            except LorabenchError as error:
                ui.label(here.words(error)).classes("text-negative")
                return
            _shown(here, item, found)


def _shown(here: Here, item: Item, found: Inspection) -> None:
    ui.label(item.name).classes("text-lg break-all")
    with ui.row().classes("gap-1"):
        ways_on(lambda: [item.id])
        downloads(item)
        if item.origin == "upload":
            ui.button("Remove", icon="delete", on_click=lambda: _remove(here, item)).props("flat dense no-caps")
    same_on_a_command_line("adapters", "inspect", item.name)
    _validation(found.validation_info)
    for name, title in _BLOCKS.items():
        _block(title, getattr(found, name))
    with ui.expansion("Raw metadata", icon="data_object").classes("w-full"):
        ui.code(json.dumps(plain(dict(found.raw_metadata)), indent=1), language="json").classes("w-full")
    modules = ui.expansion(f"Modules ({len(found.rows)})", icon="view_list").classes("w-full")
    modules.on_value_change(lambda: _filled(modules, lambda: _modules(found)))
    says = "Edit the metadata, or redact what tells of people, places and data"
    edit = ui.expansion(says, icon="edit").classes("w-full")
    edit.on_value_change(lambda: _filled(edit, lambda: _Editor(here, item)))


class _Editor:
    """The form that edits, and what it would change before it is run.

    Args:
        here: whose page it is on.
        item: the adapter.
    """

    def __init__(self, here: Here, item: Item) -> None:
        self._here, self._item = here, item
        self._panel = CommandPanel(here, "inspect", [item.id], _LOOKS, changed=self._foresee, among=[item])
        self._place = ui.column().classes("w-full gap-1").props('role="status" aria-live="polite"').mark("changes")
        self._panel.finish()
        self._place.move()  # below the options: what is typed in stays where it is

    def _foresee(self) -> None:
        self._place.clear()
        with self._place:
            chosen = next(iter(self._panel.chosen), None)
            try:
                wish = self._panel.wish()
                if chosen is None or not wish.writes:
                    ui.label("Redact, set or unset something, and what changes stands here before it is written.")
                    return
                planned = planned_edit(self._here.item(chosen), wish)
            except LorabenchError:  # the panel says it
                return
            _planned(planned)


def _planned(planned: Changes) -> None:
    rows = [{"entry": key, "before": "", "then": "taken away"} for key in planned.removed]
    for key, (before, then) in planned.changed.items():
        rows.append({"entry": key, "before": _text(before or ""), "then": _text(then)})
    rows += [{"entry": key, "before": "", "then": "computed anew"} for key in planned.anew]
    if not rows:
        ui.label("Nothing in this file changes.")
        return
    ui.label(f"{counted(len(rows), 'entry', 'entries')} will change; the tensors stay the same bytes.")
    table(rows, {name: name for name in ("entry", "before", "then")}).props("wrap-cells")


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
    ui.label(title).classes("text-lg text-bold").props('role=heading aria-level="2"')
    table(rows, {name: name for name in ("name", "value", "source")}, pagination=None).props("wrap-cells")


def _filled(place: ui.expansion, fill: Callable[[], object]) -> None:
    """Fill a place when it is first opened: what few look at costs nobody else a wait."""
    if not place.default_slot.children:
        with place:
            fill()


def _modules(found: Inspection) -> None:
    rows = [{name: _text(value) for name, value in plain(module).items()} for module in found.modules]
    table(rows, {name: name.replace("_", " ") for name in (rows[0] if rows else ())}, sortable=True)


def _text(value: Any) -> str:
    text = _said(plain(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _said(value: Any) -> str:
    """Plain data as people write it: what is in a list is, and what is counted with its number."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_said(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
