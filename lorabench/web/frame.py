"""What every panel has around it: the way to the others, who one is, what jobs have ended."""

import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nicegui import ui
from starlette.requests import Request

from lorabench.adapters.reading.beside import CONFIG
from lorabench.errors import LorabenchError
from lorabench.text import clean
from lorabench.web.notices import TOLD
from lorabench.web.queue import Job
from lorabench.web.shelf import Item
from lorabench.web.site import Site

__all__ = [
    "PANELS",
    "Here",
    "command_card",
    "command_line",
    "downloads",
    "frame",
    "same_on_a_command_line",
    "severity_chip",
    "state_chip",
    "table",
    "telling",
    "ways_on",
    "when",
]

PANELS = {
    "/": ("Library", "inventory_2"),
    "/pca": ("PCA", "scatter_plot"),
    "/resize": ("Resize", "compress"),
    "/merge": ("Merge", "merge"),
    "/compare": ("Compare", "compare_arrows"),
    "/convert": ("Convert", "swap_horiz"),
    "/plot": ("Plot", "insert_chart"),
    "/audit": ("Health", "monitor_heart"),
    "/advise": ("Ranks", "tune"),
    "/predict": ("Predict", "psychology_alt"),
    "/results": ("Results", "leaderboard"),
    "/jobs": ("Jobs", "work_history"),
}
"""Path -> title and icon of every panel."""
_ON_ADAPTERS = ("/pca", "/resize", "/merge", "/compare", "/convert", "/plot", "/audit", "/advise")
_EVERY = 1.0
"""Seconds between looks at the user's jobs."""
_NOTICES = 20
_STYLE = (Path(__file__).parent / "style.css").read_text()
_COLOURS: dict[str, str] = {
    "done": "positive", "failed": "negative", "lost": "negative", "cancelled": "grey-7", "running": "primary",
    "waiting": "grey-7",
}  # fmt: skip
_SEVERITIES = {"ok": "positive", "note": "info", "warning": "warning", "error": "negative"}


@dataclass(frozen=True)
class Here:
    """Whose page this is, on which server.

    Attributes:
        site: the server's parts.
        user: who looks.
    """

    site: Site
    user: str

    def items(self) -> list[Item]:
        """The adapters to choose from."""
        return self.site.shelf.items(self.user)

    def item(self, item_id: str) -> Item:
        """One of them."""
        return self.site.shelf.item(self.user, item_id)

    def words(self, error: LorabenchError) -> str:
        """What a refusal says."""
        return self.site.named(str(error))

    def jobs(self) -> list[Job]:
        """The user's, the newest first."""
        return self.site.queue.jobs(self.user)


@contextmanager
def frame(site: Site, request: Request, title: str) -> Iterator[Here]:
    """A page with its content inside.

    Args:
        site: the server's parts.
        request: of the page; it says who asks.
        title: of the page.
    """
    here = Here(site, str(request.state.user))
    _bind(here.user)
    ui.page_title(f"{title} · lorabench")
    ui.dark_mode(None)
    ui.colors(primary="#3b5bdb")
    ui.add_css(_STYLE)
    # Not value=None: the server would ask each browser for its width, and log a fault where one has left by then.
    drawer = ui.left_drawer(value=False, bordered=True).props("show-if-above width=190 breakpoint=900")
    with drawer:
        _links(request.url.path)
    with ui.header(elevated=False).classes("items-center justify-between").style("background: #3b5bdb"):
        with ui.row().classes("items-center gap-2"):
            ui.button(icon="menu", on_click=drawer.toggle).props('flat color=white aria-label="Menu"')
            ui.link("lorabench", "/").classes("brand")
        with ui.row().classes("items-center gap-2"):
            told = _bell(here)
            ui.label(here.user).classes("text-sm")
            with ui.element("form").props("method=post action=/sign-out"):
                ui.button("Sign out").props("flat color=white type=submit dense no-caps")
    with ui.column().classes("content"):
        ui.label(title).classes("text-2xl text-bold").props('role=heading aria-level="1"')
        yield here
    _watch(here, told)


def _bell(here: Here) -> Callable[[], None]:
    """The list of jobs that have ended, with how many are new; what is given back shows that number anew."""
    with ui.button(icon="notifications").props('flat color=white aria-label="Notifications"'):
        count = ui.badge("", color="negative").props("floating").mark("unread")
        with ui.menu().on_value_change(lambda event: show() if event.value else None):
            place = ui.list().props('dense aria-label="Jobs that have ended"').classes("w-96")

    def show() -> None:
        here.site.notices.read(here.user)
        tell()
        place.clear()
        with place:
            for job in here.site.notices.of(here.user)[:_NOTICES]:
                with ui.item(on_click=lambda job=job: ui.navigate.to(f"/jobs/{job.id}")).mark("notice"):
                    with ui.item_section().props("side"):
                        state_chip(job)
                    with ui.item_section():
                        ui.item_label(job.title).classes("break-all")
                        ui.item_label(when(job.ended or job.made)).props("caption")
            ui.item("All jobs", on_click=lambda: ui.navigate.to("/jobs"))

    def tell() -> None:
        new = len(here.site.notices.unread(here.user))
        count.set_text(str(new))
        count.set_visibility(new > 0)

    tell()
    return tell


def _bind(user: str) -> None:
    """Nobody else's socket is given this page, though he knew its id."""
    client = ui.context.client

    def check() -> None:
        scope = (client.environ or {}).get("asgi.scope", {})
        if scope.get("state", {}).get("user") != user:
            client.delete()

    client.on_connect(check)


def _links(path: str) -> None:
    with ui.element("nav").props('aria-label="Panels"').classes("w-full"), ui.list().classes("w-full"):
        for target, (title, icon) in PANELS.items():
            with ui.item(on_click=lambda target=target: ui.navigate.to(target)) as entry:
                if path == target:
                    entry.props('active aria-current="page"')
                with ui.item_section().props("avatar"):
                    ui.icon(icon)
                ui.item_section(title)


def _watch(here: Here, told: Callable[[], None]) -> None:
    """Tell of jobs that end while this page is open."""
    known = {job.id: job.state for job in here.jobs()}

    def look() -> None:
        for job in here.jobs():
            before = known.get(job.id)
            if before != job.state and before in (None, "waiting", "running"):
                known[job.id] = job.state
                if job.state in TOLD:
                    told()
                    good = job.state == "done"
                    ui.notify(
                        f"{job.title}: {job.state}" + (f". {here.site.named(job.error)}" if job.error else ""),
                        type="positive" if good else "negative", close_button="Close", timeout=8000 if good else 0,
                    )  # fmt: skip

    ui.timer(_EVERY, look)


@contextmanager
def telling(here: Here) -> Iterator[None]:
    """What the toolkit refuses is told, and the page stays."""
    try:
        yield
    except LorabenchError as error:
        ui.notify(here.words(error), type="negative", close_button="Close", timeout=0, multi_line=True)


def command_card(line: str = "") -> tuple[ui.card, ui.code]:
    """A card with the command that does what a panel does, to copy; and the command in it."""
    with ui.card().classes("w-full").props("flat bordered") as card:
        ui.label("The same on a command line").classes("text-sm text-bold")
        return card, command_line(line)


def command_line(line: str) -> ui.code:
    """A command, to copy."""
    code = ui.code(line, language="bash").classes("w-full command")
    code.copy_button.props('aria-label="Copy the command"')
    return code


def same_on_a_command_line(*words: str) -> None:
    """The command that shows what a panel shows.

    Args:
        words: behind `lorabench`, not quoted.
    """
    command_card(shlex.join(["lorabench", *(clean(word) for word in words)]))


def ways_on(chosen: Callable[[], Iterable[str]]) -> None:
    """Buttons that take adapters to the panels that work on them.

    Args:
        chosen: gives their ids, when a button is pressed.
    """

    def go(path: str) -> None:
        ui.navigate.to(f"{path}?of={','.join(chosen())}")

    for path in _ON_ADAPTERS:
        title, icon = PANELS[path]
        ui.button(title, icon=icon, on_click=lambda path=path: go(path)).props("flat dense no-caps")


def table(
    rows: list[dict[str, Any]],
    labels: Mapping[str, str],
    *,
    key: str | None = None,
    numbers: Collection[str] = (),
    wrapped: Collection[str] = (),
    sortable: bool = False,
    selection: Literal["single", "multiple"] | None = None,
    pagination: int | None = 25,
) -> ui.table:
    """Rows under a head.

    Args:
        rows: entry -> value, for every row.
        labels: entry -> what stands over it, in the order of the columns.
        key: the entry that no two rows share; by default the first column's.
        numbers: entries whose values stand to the right.
        wrapped: those whose text may take several lines; `wrap-cells` has all do so.
        sortable: by a click on the head.
        selection: rows can be chosen.
        pagination: rows on a page; None: all are on one.
    """
    columns = [
        {
            "name": name, "label": label, "field": name, "sortable": sortable,
            "align": "right" if name in numbers else "left",
            "style": "white-space: normal" if name in wrapped else "",
        }
        for name, label in labels.items()
    ]  # fmt: skip
    made = ui.table(
        rows=rows, columns=columns, row_key=key or next(iter(labels), "id"), selection=selection, pagination=pagination
    )
    return made.classes("w-full").props("dense flat")


def when(seconds: float) -> str:
    """A time, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def downloads(item: Item) -> None:
    """Links to take an adapter along: its file, and where it has a configuration both in one archive."""
    ui.link("Download", f"/api/adapters/{item.id}/file").props("download").classes("self-center q-px-sm")
    if len(item.files) > 1:
        text = f"Download with {CONFIG}"
        ui.link(text, f"/api/adapters/{item.id}/archive").props("download").classes("self-center q-px-sm")


def state_chip(job: Job) -> ui.badge:
    """How a job stands; one that is done may have found that something is wrong."""
    if job.state == "done" and job.code:
        return severity_chip("warning", "done, with findings")
    return ui.badge(job.state, color=_COLOURS[job.state])


def severity_chip(level: str, says: str | None = None) -> ui.badge:
    """How bad a finding is.

    Args:
        level: "ok", "note", "warning" or "error".
        says: other words than that.
    """
    chip = ui.badge(says or level, color=_SEVERITIES[level])
    return chip.props("text-color=black") if level == "warning" else chip
