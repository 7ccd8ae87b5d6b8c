"""Another rank: what it would cost is drawn before anything is written."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nicegui import ui
from starlette.requests import Request

from lorabench.adapters.resizing.checks import validate
from lorabench.adapters.resizing.rule import MODES
from lorabench.errors import LorabenchError
from lorabench.web.api import make_rule
from lorabench.web.figures import bars, error_curve
from lorabench.web.frame import Here, frame, telling
from lorabench.web.panels.command import CommandPanel, Given, given
from lorabench.web.site import Site

if TYPE_CHECKING:
    from lorabench.adapters.resizing.preview import Foreseen, Preview

__all__ = ["add"]

_WORDS = {
    "rank": "to one rank",
    "energy": "keep this share of each module's energy",
    "total_energy": "keep this share of the whole adapter's energy",
    "parameters": "to this many parameters",
    "size_mib": "to a file of this many MiB",
    "sv_ratio": "keep singular values above the largest / T",
    "sv_cumulative": "keep this share of the sum of singular values",
    "sv_fro": "keep this share of the Frobenius norm",
    "pad": "pad with zeros up to this rank",
    "truncate": "cut the factors (quick, not optimal)",
}
_SHARES = ("energy", "total_energy", "sv_cumulative", "sv_fro")
_WORST = 20
_MIB = 2**20


@dataclass
class _State:
    """What is chosen, and what is known of it."""

    preview: "Preview | None" = None
    curve: "list[Foreseen] | None" = None
    of: str | None = None


class _Resizer:
    """The panel of one visitor."""

    def __init__(self, here: Here, given: Given) -> None:
        self._here, self._state = here, _State()
        self._first = next(((mode, given.options[mode]) for mode in MODES if mode in given.options), None)
        ui.label("The error is that of ΔW, relative to its norm; it is known before anything is written.")
        self._panel = CommandPanel(here, "resize", given.adapters, (*MODES, "dry_run"), self._own, self._changed)
        self._facts = ui.label().classes("faint break-all")
        with ui.row().classes("w-full items-center no-wrap"):
            self._mode = ui.select(_WORDS, value="rank", label="How", on_change=self._other_mode).classes("w-64")
            self._slider = ui.slider(min=1, max=16, value=4, on_change=lambda _: self._panel.refresh())
            self._slider.classes("grow").props('label aria-label="Value"').mark("slider")
            self._number = ui.number("Value", value=4).classes("w-32").bind_value(self._slider, "value")
        self._said = ui.label().classes("text-lg text-bold").props('role="status" aria-live="polite"').mark("foreseen")
        with ui.row().classes("w-full"):
            self._curve = ui.echart({}).classes("half h-80")
            self._bars = ui.echart({}).classes("half h-80")
        self._panel.finish(first=0)
        self._panel.fill(given)

    def _own(self) -> dict[str, Any]:
        value = self._slider.value
        whole = self._mode.value in ("rank", "pad", "truncate", "parameters")
        return {str(self._mode.value): int(value) if whole else round(float(value), 4)}

    def _other_mode(self) -> None:
        if self._state.curve:
            low, high, step, value = _range(str(self._mode.value), self._state.curve)
            if self._first is not None and self._first[0] == self._mode.value:
                value, self._first = self._first[1], None
            self._slider.props(f"min={low} max={high} step={step}")
            self._slider.set_value(value)
        self._panel.refresh()

    async def look(self) -> None:
        """Read the adapter that is chosen, if it is another one."""
        chosen = next(iter(self._panel.chosen), None)
        if chosen == self._state.of:
            return
        self._state = _State(of=chosen)
        if chosen is None:
            self._draw()
            return
        self._said.set_text("The spectra are being computed, once: seconds, or a minute for a large LoKr.")
        with telling(self._here):
            item = self._here.item(chosen)
            found = await asyncio.to_thread(validate, item.path)
            ranks = ", ".join(f"{count} of rank {rank}" for rank, count in found.ranks.items())
            base = await asyncio.to_thread(self._here.site.shelf.row, item)
            self._facts.set_text(
                f"{item.name}: for {base['family'] or base['base_model'] or 'a base that nothing names'}; "
                f"{ranks or 'no modules'}. {' '.join((*found.problems, *found.notes))}"
            )
            preview = await self._here.site.previews.of(self._here.user, item)
            curve = await asyncio.to_thread(lambda: list(preview.uniform()))
            if self._state.of == chosen:  # another one may have been chosen meanwhile
                self._state.preview, self._state.curve = preview, curve
                if self._first is not None and self._first[0] != self._mode.value:
                    self._mode.set_value(self._first[0])  # its on_change is _other_mode
                else:
                    self._other_mode()
        if self._state.of == chosen and self._state.preview is None:
            self._said.set_text("")

    def _changed(self) -> None:
        if next(iter(self._panel.chosen), None) != self._state.of:
            ui.timer(0, self.look, once=True)
        else:
            self._draw()

    def _draw(self) -> None:
        preview, curve, chosen = self._state.preview, self._state.curve, self._state.of
        if preview is None or curve is None or chosen is None:
            self._said.set_text("")
            return
        try:
            seen = preview.under(make_rule(self._here.item(chosen), self._own()))
        except LorabenchError as error:
            self._said.set_text(self._here.words(error))
            return
        ranks = sorted(set(seen.ranks.values()))
        spread = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        self._said.set_text(
            f"rank {spread}: error {100 * seen.error:.3g} %, weights {seen.weight_bytes / _MIB:.3g} MiB "
            f"(all of it: {curve[-1].weight_bytes / _MIB:.3g} MiB)"
        )
        _show(self._curve, error_curve(curve, seen))
        worst = sorted(seen.errors.items(), key=lambda pair: pair[1], reverse=True)[:_WORST]
        _show(self._bars, bars("error by module, the worst first (%)", [(name, 100 * error) for name, error in worst]))


def _range(mode: str, curve: "list[Foreseen]") -> tuple[float, float, float, float]:
    """Least, largest, step and first value of the slider."""
    most = len(curve)
    if mode in ("rank", "truncate"):
        return 1, most, 1, max(1, most // 2)
    if mode == "pad":
        return most, 4 * most, 1, 2 * most
    if mode in _SHARES:
        return 0.5, 1, 0.005, 0.95
    if mode == "sv_ratio":
        return 1, 50, 0.5, 10
    if mode == "parameters":
        return curve[0].parameters, curve[-1].parameters, 1, curve[-1].parameters // 2
    sizes = [one.weight_bytes / _MIB for one in curve]
    return round(sizes[0], 3), round(sizes[-1] * 1.1 + 0.05, 3), 0.001, round(sizes[-1] / 2 + 0.03, 3)


def _show(chart: ui.echart, options: dict[str, Any]) -> None:
    chart.options.clear()
    chart.options.update(options)
    chart.update()


def add(site: Site) -> None:
    """The panel."""

    @ui.page("/resize")
    async def page(request: Request, of: str = "", again: str = "") -> None:
        with frame(site, request, "Resize") as here:
            resizer = _Resizer(here, given(here, of, again))
        await ui.context.client.connected()
        await resizer.look()
