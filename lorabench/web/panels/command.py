"""A command of the toolkit as a panel: adapters, options, the same command to copy, and a job that runs it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nicegui import ui
from starlette.requests import Request

from lorabench.errors import LorabenchError
from lorabench.web.api import Wanted, start
from lorabench.web.form import Form, choose
from lorabench.web.frame import PANELS, Here, frame, telling
from lorabench.web.shelf import Item
from lorabench.web.site import Site
from lorabench.web.tools import Wish, tool

__all__ = ["CommandPanel", "add"]


@dataclass(frozen=True)
class _Shown:
    """A command that is a panel of its own.

    Attributes:
        command: its name.
        says: what it is for, a sentence.
        check: option that looks without writing, and what its button says.
    """

    command: str
    says: str
    check: tuple[str, str] | None = None


_SHOWN = (
    _Shown("pca", "One adapter: the components of its layers' weights. Several: a map of them by their updates ΔW."),
    _Shown(
        "merge",
        "Several adapters into one. Check first: what clashes is said module by module, before anything is written.",
        ("preflight", "Check first"),
    ),
    _Shown("compare", "Two adapters of one base, module by module: how far and in which direction they differ."),
    _Shown("convert", "The layouts of PEFT, diffusers, kohya and ComfyUI into one another."),
    _Shown("plot", "Pictures of weights, spectra, ranks and depth; of two adapters their difference."),
    _Shown("audit", "Does it use the rank it was given: metrics, alerts with what to do, a page with figures."),
    _Shown("advise", "The ranks that it needs, module by module, beside uniform and shuffled ranks."),
)


class CommandPanel:
    """The inner part of a panel.

    Args:
        here: whose.
        name: of the command.
        chosen: ids of adapters to begin with.
        without: options that the panel asks for in its own way, which `own` gives.
        own: values of these.
        changed: called when adapters or values change.
        among: adapters to choose from; None: all.
    """

    _form: Form

    def __init__(
        self,
        here: Here,
        name: str,
        chosen: Iterable[str] = (),
        without: Iterable[str] = (),
        own: Callable[[], dict[str, Any]] = dict,
        changed: Callable[[], None] = lambda: None,
        among: Sequence[Item] | None = None,
    ) -> None:
        self._here, self._tool, self._own, self._told = here, tool(name), own, changed
        self._ready, self._without = False, tuple(without)
        items = here.items() if among is None else among
        self.chooser = choose(items, self._tool.most != 1, chosen, self.refresh)

    def finish(self, check: tuple[str, str] | None = None, first: int = 3) -> None:
        """The options, the command to copy, and the buttons that run it.

        Args:
            check: option that looks without writing, and what its button says.
            first: options that are shown at once.
        """
        self._form = Form(self._here, self._tool, self.refresh, self._without, first)
        with ui.card().classes("w-full").props("flat bordered"):
            ui.label("The same on a command line").classes("text-sm font-bold")
            self._line = ui.code("", language="bash").classes("w-full command")
            self._wrong = ui.label().classes("text-negative").props('role="status"')
        with ui.row():
            self._buttons = [ui.button("Run", icon="play_arrow", on_click=lambda: self._run({})).mark("run")]
            if check is not None:
                option, says = check
                button = ui.button(says, icon="fact_check", on_click=lambda: self._run({option: True}))
                self._buttons.append(button.props("outline"))
        self._ready = True
        self.refresh()

    @property
    def chosen(self) -> list[str]:
        """Ids of the adapters that are chosen."""
        value = self.chooser.value
        return list(value) if isinstance(value, list) else [value] if value else []

    def refresh(self) -> None:
        """Show the command anew."""
        if not self._ready:
            return
        self._told()
        here = self._here
        try:
            wish = self.wish()
        except LorabenchError as error:
            self._wrong.set_text(here.words(error))
            self._line.set_content("")
            for button in self._buttons:
                button.disable()
            return
        self._line.set_content(wish.shown)
        self._wrong.set_text("")
        for button in self._buttons:
            button.enable()

    def wish(self) -> Wish:
        """What Run would run.

        Raises:
            LorabenchError: it would be refused.
        """
        here = self._here
        items = [here.item(one).input for one in self.chosen]
        return self._tool.wish(items, self._options(), lambda one: here.item(one).input)

    def _options(self) -> dict[str, Any]:
        return self._form.values | self._own()

    def _run(self, more: dict[str, Any]) -> None:
        with telling(self._here):
            wanted = Wanted(command=self._tool.name, adapters=self.chosen, options=self._options() | more)
            job = start(self._here.site, self._here.user, wanted)
            ui.navigate.to(f"/jobs/{job.id}")


def add(site: Site) -> None:
    """The panels of commands that need nothing else."""
    for shown in _SHOWN:
        _add(site, shown)


def _add(site: Site, shown: _Shown) -> None:
    path = f"/{shown.command}"

    @ui.page(path)
    def page(request: Request, of: str = "") -> None:
        with frame(site, request, PANELS[path][0]) as here:
            ui.label(shown.says).classes("opacity-80")
            CommandPanel(here, shown.command, of.split(",")).finish(shown.check)
