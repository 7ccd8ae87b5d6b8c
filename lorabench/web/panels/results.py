"""What the benchmark found: runs and sweeps with their report, live while they run."""

import asyncio
import time

from nicegui import ui
from starlette.requests import Request

from lorabench.web.frame import frame, same_on_a_command_line
from lorabench.web.runs import Run
from lorabench.web.site import Site

__all__ = ["add"]

_EVERY, _SELDOM = 5.0, 60.0
"""Seconds after which is looked again, at what is at work and where nothing is."""


def add(site: Site) -> None:
    """The panel."""

    @ui.page("/results")
    async def page(request: Request, of: str = "") -> None:
        with frame(site, request, "Results"):
            before = await asyncio.to_thread(site.runs.all)

            @ui.refreshable
            def lines(runs: list[Run]) -> None:
                if not runs:
                    ui.label("No run and no sweep here. Start the server with --runs DIR, outputs/ or multirun/ say.")
                for one in runs:
                    _line(one)

            # The report does not ask for itself: in its frame, which has no origin, it has no cookie either.
            @ui.refreshable
            def report() -> None:
                ui.element("iframe").props(f'src="/api/runs/{of}/page" title="Report"').classes("w-full h-most")

            async def look() -> None:
                nonlocal before
                now = await asyncio.to_thread(site.runs.all)
                if now != before:
                    lines.refresh(now)
                    if _one(now, of) != _one(before, of):
                        report.refresh()
                before = now
                timer.interval = _pace(now)

            lines(before)
            if (shown := _one(before, of)) is not None:
                same_on_a_command_line("report", shown.name)
                report()
            timer = ui.timer(_pace(before), look, immediate=False)


def _one(runs: list[Run], of: str) -> Run | None:
    return next((one for one in runs if one.id == of), None)


def _pace(runs: list[Run]) -> float:
    return _EVERY if any(one.live for one in runs) else _SELDOM


def _line(one: Run) -> None:
    with ui.row().classes("w-full items-center"):
        good = one.done == one.count
        ui.badge(
            f"{one.done} of {one.count} done" + (", running" if one.live else ""),
            color="positive" if good else "primary" if one.live else "negative",
        )
        ui.link(one.name, f"/results?of={one.id}").classes("grow break-all")
        ui.label("sweep" if one.sweep else "run")
        ui.label(time.strftime("%Y-%m-%d %H:%M", time.localtime(one.changed))).classes("fainter")
        ui.link("open alone", f"/api/runs/{one.id}/page")
