"""Health: an adapter, several, or the checkpoints of one training over its steps."""

from nicegui import ui
from starlette.requests import Request

from lorabench.web.frame import frame
from lorabench.web.panels.command import CommandPanel, Given, given
from lorabench.web.shelf import Training
from lorabench.web.site import Site

__all__ = ["add"]


def add(site: Site) -> None:
    """The panel."""

    @ui.page("/audit")
    def page(request: Request, of: str = "", again: str = "") -> None:
        with frame(site, request, "Health") as here:
            ui.label(
                "Does it use the rank it was given: metrics, alerts with what to do, a page with figures. The "
                "checkpoints of a training are judged as one, over its steps."
            ).classes("faint")
            place = ui.column().classes("w-full")
            wish = given(here, of, again)
            panel = CommandPanel(here, "audit", wish.adapters)
            panel.finish()
            panel.fill(wish)
            trainings = here.site.shelf.trainings(here.user)
            if trainings:
                with place:
                    _choice(panel, trainings)


def _choice(panel: CommandPanel, trainings: list[Training]) -> None:
    """A training with one click, in place of its checkpoints one by one."""
    names = {number: f"{one.name} ({len(one.items)} checkpoints)" for number, one in enumerate(trainings)}

    def choose(number: int | None) -> None:
        if number is not None:
            panel.fill(Given([item.id for item in trainings[number].items], {"series": True}))

    ui.select(
        names, label="A training", with_input=True, clearable=True, on_change=lambda event: choose(event.value)
    ).classes("w-full").mark("training")
