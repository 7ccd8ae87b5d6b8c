"""A command of the toolkit as a panel: adapters, options, the same command to copy, and a job that runs it."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.concurrency import run_in_threadpool
from nicegui import ui
from starlette.requests import Request

from lorabench.errors import LorabenchError
from lorabench.web.api import MOST, Wanted, start
from lorabench.web.form import Form, choose
from lorabench.web.frame import PANELS, Here, command_card, frame, telling
from lorabench.web.shelf import Item
from lorabench.web.site import Site
from lorabench.web.tools import PREDICT, Wish, tool

__all__ = ["CommandPanel", "Given", "add", "given"]


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
    _Shown("advise", "The ranks that it needs, module by module, beside uniform and shuffled ranks."),
    _Shown(
        PREDICT,
        "What each adapter was trained on, with a probability, or that the model does not know. Models are those that "
        "the server was given by --models DIR, folders of lorabench export.",
    ),
)


@dataclass(frozen=True)
class Given:
    """What a panel begins with.

    Attributes:
        adapters: their ids.
        options: option -> its value.
    """

    adapters: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def given(here: Here, of: str, again: str) -> Given:
    """What the address of a panel says: adapters, or a job whose wish is to be looked at once more.

    Args:
        here: whose page it is.
        of: ids of adapters, with commas between.
        again: the job's id; one that is no longer there is passed over.
    """
    with contextlib.suppress(LorabenchError):
        job = here.site.queue.job(here.user, again)
        if job.asked is not None:
            return Given(job.asked["adapters"], job.asked["options"])
    return Given(of.split(","))


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
        self._ready, self._without, self._touched = False, tuple(without), False
        items = here.items() if among is None else among
        self.chooser = choose(items, self._tool.most != 1, chosen, self._changed)

    def finish(self, check: tuple[str, str] | None = None, first: int = 3) -> None:
        """The options, the command to copy, and the buttons that run it.

        Args:
            check: option that looks without writing, and what its button says.
            first: options that are shown at once.
        """
        self._form = Form(self._here, self._tool, self._changed, self._without, first)
        card, self._line = command_card()
        with card:
            self._wrong = ui.label().props('role="status"')
        with ui.row():
            self._buttons = [ui.button("Run", icon="play_arrow", on_click=lambda: self._run({})).mark("run")]
            if check is not None:
                option, says = check
                button = ui.button(says, icon="fact_check", on_click=lambda: self._run({option: True}))
                self._buttons.append(button.props("outline"))
        self.refresh()
        self._ready = True

    def fill(self, wish: Given) -> None:
        """Choose and set what was given before; adapters that are no longer there are passed over."""
        there = [one for one in wish.adapters if one in self.chooser.options]
        self._ready = False
        self.chooser.set_value(there if self._tool.most != 1 else next(iter(there), None))
        self._form.fill(wish.options)
        self._ready = True
        self.refresh()

    @property
    def chosen(self) -> list[str]:
        """Ids of the adapters that are chosen."""
        value = self.chooser.value
        return list(value) if isinstance(value, list) else [value] if value else []

    def _changed(self) -> None:
        """Somebody has chosen or typed something."""
        if self._ready:
            self._touched = True
            self.refresh()

    def refresh(self) -> None:
        """Show the command anew, or what it lacks: as a fault where somebody has begun, and else as what comes next."""
        self._told()
        here = self._here
        try:
            wish = self.wish()
        except LorabenchError as error:
            self._wrong.classes(replace="text-negative" if self._touched else "faint")
            first = "Choose an adapter first." if self._tool.most == 1 else "Choose adapters first."
            self._wrong.set_text(here.words(error) if self._touched or self.chosen else first)
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
        if len(self.chosen) > MOST:
            raise LorabenchError(
                f"{len(self.chosen)} adapters are chosen, {MOST} are the most of one job: leave some out."
            )
        items = [here.item(one).input for one in self.chosen]
        return self._tool.wish(items, self._options(), lambda one: here.item(one).input, here.site.models.find)

    def _options(self) -> dict[str, Any]:
        return self._form.values | self._own()

    async def _run(self, more: dict[str, Any]) -> None:
        with telling(self._here):
            wanted = Wanted(command=self._tool.name, adapters=self.chosen, options=self._options() | more)
            # In a thread: what a user has on the disk is measured.
            job = await run_in_threadpool(start, self._here.site, self._here.user, wanted)
            if (path := f"/{self._tool.name}") in PANELS:  # the browser's way back leads to what was given
                ui.navigate.history.replace(f"{path}?again={job.id}")
            ui.navigate.to(f"/jobs/{job.id}")


def add(site: Site) -> None:
    """The panels of commands that need nothing else."""
    for shown in _SHOWN:
        _add(site, shown)


def _add(site: Site, shown: _Shown) -> None:
    path = f"/{shown.command}"

    @ui.page(path)
    def page(request: Request, of: str = "", again: str = "") -> None:
        with frame(site, request, PANELS[path][0]) as here:
            ui.label(shown.says).classes("faint")
            wish = given(here, of, again)
            panel = CommandPanel(here, shown.command, wish.adapters)
            panel.finish(shown.check)
            if shown.check is not None:  # what was checked is done next
                wish = Given(
                    wish.adapters, {key: value for key, value in wish.options.items() if key != shown.check[0]}
                )
            panel.fill(wish)
