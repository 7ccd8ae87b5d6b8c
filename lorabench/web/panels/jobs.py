"""Jobs: those that wait, run and have ended; and one of them with its answer."""

import time

from nicegui import ui
from starlette.requests import Request

from lorabench.errors import LorabenchError
from lorabench.web.answers import show_answer
from lorabench.web.frame import PANELS, Here, command_line, frame, state_chip, telling, when
from lorabench.web.queue import Job
from lorabench.web.site import Site

__all__ = ["add"]

_EVERY = 0.5
_ACTIVE = ("waiting", "running")


def add(site: Site) -> None:
    """Both panels."""

    @ui.page("/jobs")
    def all_jobs(request: Request) -> None:
        with frame(site, request, "Jobs") as here:
            _list(here)

    @ui.page("/jobs/{job_id}")
    async def one_job(request: Request, job_id: str) -> None:
        with frame(site, request, "Job") as here:
            try:
                job = site.queue.job(here.user, job_id)
            except LorabenchError as error:
                ui.label(here.words(error)).classes("text-negative")
                return
            await _one(here, job)


def _list(here: Here) -> None:
    @ui.refreshable
    def shown() -> None:
        jobs = here.jobs()
        if not jobs:
            ui.label("None yet: every panel's Run makes one.")
        for job in jobs:
            with ui.row().classes("w-full items-center"):
                state_chip(job)
                ui.link(job.title, f"/jobs/{job.id}").classes("grow break-all")
                ui.label(when(job.made)).classes("fainter")

    shown()
    before = [[(job.id, job.state) for job in here.jobs()]]

    def look() -> None:
        now = [(job.id, job.state) for job in here.jobs()]
        if now != before[0]:
            before[0] = now
            shown.refresh()

    ui.timer(_EVERY, look)


async def _one(here: Here, job: Job) -> None:
    ui.label(job.title).classes("text-lg break-all")
    command_line(job.shown)
    head = ui.row().classes("w-full items-center")
    body = ui.column().classes("w-full")
    with head:
        chip = ui.element("span")
        took = ui.label()
        bar = ui.linear_progress(0, show_value=False).classes("grow").props("instant-feedback aria-label=Progress")
        cancel = (
            ui.button("Cancel", icon="stop", on_click=lambda: _cancel(here, job.id)).props("outline").mark("cancel")
        )
        if f"/{job.words[0]}" in PANELS and job.asked is not None:
            way = f"/{job.words[0]}?again={job.id}"
            ui.button("Change and run again", icon="replay", on_click=lambda: ui.navigate.to(way)).props("flat")
        forget = ui.button("Remove", icon="delete", on_click=lambda: _forget(here, job.id)).props("flat")
    seen: list[str | None] = [None]

    async def look() -> None:
        try:
            now = here.site.queue.job(here.user, job.id)
        except LorabenchError:
            timer.deactivate()  # it was removed on another page
            return
        progress = here.site.queue.progress(here.user, job.id)
        took.set_text(_took(now))
        bar.props(remove="indeterminate") if progress is not None else bar.props("indeterminate")
        bar.set_value(progress or 0.0)
        if now.state == seen[0]:
            return
        seen[0] = now.state
        active = now.state in _ACTIVE
        for element, visible in ((bar, active), (cancel, active), (forget, not active)):
            element.set_visibility(visible)
        chip.clear()
        with chip:
            state_chip(now).mark("state")
        if not active:
            timer.deactivate()
            here.site.notices.read(here.user, now)
            with body:
                await show_answer(here, now)

    timer = ui.timer(_EVERY, look)
    await look()


def _took(job: Job) -> str:
    if job.started is None:
        return "waits for its turn" if job.state == "waiting" else ""
    return f"{(job.ended or time.time()) - job.started:.1f} s"


def _cancel(here: Here, job_id: str) -> None:
    with telling(here):
        here.site.queue.cancel(here.user, job_id)


def _forget(here: Here, job_id: str) -> None:
    with telling(here):
        here.site.queue.forget(here.user, job_id)
        ui.navigate.to("/jobs")
