"""What the benchmark found: runs and sweeps with their report, live while they run."""

import asyncio
import time

from nicegui import ui
from starlette.requests import Request

from lorabench.web.frame import frame
from lorabench.web.runs import Run
from lorabench.web.site import Site

__all__ = ["add"]


def add(site: Site) -> None:
    """The panel."""

    @ui.page("/results")
    async def page(request: Request, of: str = "") -> None:
        with frame(site, request, "Results"):
            runs = await asyncio.to_thread(site.runs.all)
            if not runs:
                ui.label("No run and no sweep here. Start the server with --runs DIR, outputs/ or multirun/ say.")
            for one in runs:
                _line(one)
            if any(one.id == of for one in runs):
                ui.element("iframe").props(f'src="/api/runs/{of}/page" title="Report"').classes("w-full h-most")


def _line(one: Run) -> None:
    with ui.row().classes("w-full items-center"):
        good = one.done == one.count
        ui.badge(
            f"{one.done} of {one.count} done" + (", running" if one.live else ""),
            color="positive" if good else "primary" if one.live else "negative",
        )
        ui.link(one.name, f"/results?of={one.id}").classes("grow")
        ui.label("sweep" if one.sweep else "run")
        ui.label(time.strftime("%Y-%m-%d %H:%M", time.localtime(one.changed))).classes("fainter")
        ui.link("open alone", f"/api/runs/{one.id}/page")
