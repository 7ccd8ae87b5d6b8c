"""What a job has answered: its figures and pages to look at, its text to read, its files to take along."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi.concurrency import run_in_threadpool
from nicegui import ui

from lorabench.web.clashes import show_clashes
from lorabench.web.figures import heat_map, lines, scatter
from lorabench.web.frame import Here, downloads, severity_chip, table
from lorabench.web.queue import Job
from lorabench.web.tools import PREDICT

__all__ = ["show_answer"]

_PICTURES = (".svg", ".png")
_SHOWN = 40
"""Rows and columns of a heat map."""


async def show_answer(here: Here, job: Job) -> None:
    """All of it; what is on the disk is read in a thread, for others wait on the same loop."""
    answer = await run_in_threadpool(here.site.answer, job) or {}
    files = await run_in_threadpool(here.site.queue.files, here.user, job.id)
    log = await run_in_threadpool(here.site.queue.log, here.user, job.id)
    if job.error:
        ui.label(str(answer.get("error") or job.error)).classes("text-negative break-all").props("role=alert").mark(
            "error"
        )
    _files(here, job, files)
    data = answer.get("data")
    special = _SPECIAL.get(job.words[0])
    if special is not None and isinstance(data, dict):
        await special(here, job, data)
    for name in files:
        address = _address(job, name)
        if name.endswith(_PICTURES):
            ui.element("img").props(f'src="{address}?show=true" alt="{name}"').classes("bg-white")
        elif name.endswith(".html"):
            ui.element("iframe").props(f'src="{address}?show=true" title="{name}"').classes("w-full h-most")
    if answer.get("text"):
        ui.label("As the command line says it").classes("text-sm text-bold")
        ui.label(str(answer["text"])).classes("printed").mark("text")
    if log:
        with ui.expansion("Log").classes("w-full"):
            ui.label(here.site.named(log)).classes("printed")


def _files(here: Here, job: Job, files: Sequence[str]) -> None:
    if not files:
        return
    made = {item.name.partition("/")[2]: item for item in here.items() if item.source == job.id}
    with ui.card().classes("w-full").props("flat bordered"):
        for name in files:
            with ui.row().classes("items-center"):
                ui.link(name, _address(job, name)).props("download").classes("break-all").mark("download")
                if name in made:
                    ui.link("look at it", f"/adapter/{made[name].id}")
                    ui.link("health", f"/audit?of={made[name].id}")
                    downloads(made[name])


def _address(job: Job, name: str) -> str:
    return f"/api/jobs/{job.id}/files/{quote(name)}"


async def _components(here: Here, job: Job, data: dict[str, Any]) -> None:
    """Of one adapter: variances layer by layer, and the components of one. Of several: a map of them."""
    if "modules" in data:
        _map(data)
        return
    layers: dict[str, Any] = {name: layer for name, layer in data["layers"].items() if not layer["reason"]}
    if not layers:
        return
    shares = {name: layer["explained_variance_ratio"] for name, layer in layers.items()}
    first = dict(list(shares.items())[:_SHOWN])
    title = "explained variance, layer by component"
    title += f" (the first {len(first)} of {len(shares)} layers)" if len(first) < len(shares) else ""
    ui.echart(heat_map(title, list(first), [
        values[:_SHOWN] for values in first.values()
    ])).classes("w-full").style(f"height: {max(240, 16 * len(first) + 126)}px")  # fmt: skip
    chosen = ui.select(list(layers), value=next(iter(layers)), label="Layer", with_input=True).classes("w-full")
    place = ui.column().classes("w-full")

    async def draw() -> None:
        place.clear()
        layer = layers[str(chosen.value)]
        charts = {
            "explained variance": layer["explained_variance_ratio"],
            "cumulative": layer["cumulative"],
            "singular values": layer["singular_values"],
        }
        with place, ui.row().classes("w-full"):
            for title, values in charts.items():
                ui.echart(lines(title, {title: values})).classes("third h-64")
            await _weights(here, job, str(chosen.value))

    chosen.on_value_change(draw)
    await draw()


async def _weights(here: Here, job: Job, layer: str) -> None:
    """The components themselves, which are in the file alone."""
    components = await run_in_threadpool(_components_of, here, job, layer)
    if components:
        rows = [f"component {place}" for place, _ in enumerate(components[:_SHOWN], 1)]
        values = [[round(value, 5) for value in row[: 4 * _SHOWN]] for row in components[:_SHOWN]]
        low = min(min(row) for row in values)
        title = f"components of {layer}" + (
            f", the first {4 * _SHOWN} features" if len(components[0]) > 4 * _SHOWN else ""
        )
        ui.echart(heat_map(title, rows, values, low)).classes("w-full h-96")


def _components_of(here: Here, job: Job, layer: str) -> list[list[float]]:
    """Of one layer: the file has a line for each, and may be too large to be read whole."""
    if "components.json" not in here.site.queue.files(here.user, job.id):
        return []
    starts = tuple(f"  {json.dumps(layer, ensure_ascii=escaped)}: " for escaped in (True, False))
    with here.site.queue.file(here.user, job.id, "components.json").open(encoding="utf-8") as file:
        line = next((line for line in file if line.startswith(starts)), "")
    written = json.loads(line[line.index(": {") + 2 :].rstrip(",\n")) if line else {}
    return written.get("components") or []


def _map(data: Mapping[str, Any]) -> None:
    modules = {name: module for name, module in data["modules"].items() if not module["reason"]}
    if not modules:
        return
    names = [str(name).rsplit("/", maxsplit=1)[-1] for name in data["adapters"]]
    chosen = ui.select(list(modules), value=next(iter(modules)), label="Module", with_input=True).classes("w-full")
    place = ui.column().classes("w-full")

    def draw() -> None:
        place.clear()
        scores = modules[str(chosen.value)]["scores"]
        points = {
            f"{number} {name}": (row[0], row[1] if len(row) > 1 else 0.0)
            for number, (name, row) in enumerate(zip(names, scores, strict=True), 1)
        }
        with place:
            ui.echart(scatter(f"adapters by ΔW of {chosen.value}", points)).classes("w-full h-96")

    chosen.on_value_change(draw)
    draw()


async def _health(_here: Here, _job: Job, data: dict[str, Any]) -> None:
    """What the rules say and what to do about it; of a training how it went."""
    for one in data["adapters"][:_SHOWN]:
        with ui.card().classes("w-full").props("flat bordered"):
            with ui.row().classes("items-center"):
                ui.label(one["name"]).classes("text-bold break-all")
                severity_chip(one["severity"] or "ok", one["severity"] or "nothing to say")
            for fault in (one["unreadable"], *one["skipped"].values()):
                if fault:
                    ui.label(fault).classes("text-negative break-all")
            for alert in one["alerts"]:
                _alert(alert, alert["rule"] in one["ceased"])
            for said in one["not_held_against_base"]:
                ui.label(said).classes("faint break-all")
            if one["trajectory"]:
                _trajectory(one["trajectory"], one["unit"])


def _alert(alert: dict[str, Any], ceased: bool) -> None:
    with ui.row().classes("items-center gap-2 no-wrap"):
        severity_chip(alert["severity"])
        step = "" if alert["step"] is None else f", {alert['unit']} {alert['step']}"
        ui.label(f"{alert['rule']}{step}{', ceased since' if ceased else ''}: {alert['message']}").classes("break-all")
    ui.label(f"What to do: {alert['action']}").classes("faint q-pl-md")


def _trajectory(steps: Sequence[Mapping[str, Any]], unit: str) -> None:
    """The median module at each checkpoint."""
    places = [one["step"] for one in steps]
    charts = {
        "use of the rank (%)": {
            name: [None if one[key] is None else round(100 * one[key], 2) for one in steps]
            for name, key in (("median", "rank_utilization"), ("lowest", "lowest"), ("highest", "highest"))
        },
        "stable rank": {"median": [one["stable_rank"] for one in steps]},
        "σ₁ of ΔW": {"median": [one["sigma_max"] for one in steps]},
    }
    with ui.row().classes("w-full"):
        for title, values in charts.items():
            ui.echart(lines(f"{title} by {unit}", values, places)).classes("third h-64").mark("trajectory")


async def _merge(_here: Here, _job: Job, data: dict[str, Any]) -> None:
    """What was looked at before it was merged, or in place of that."""
    found = data.get("preflight", data)
    if "findings" in found:
        show_clashes(found, merged=bool(data.get("written")))


async def _answers(_here: Here, _job: Job, data: dict[str, Any]) -> None:
    """What the model says of each adapter."""
    columns = {
        "file": "adapter",
        "answer": "what it was trained on",
        "probability": "p",
        "then": "then",
        "why": "why it does not know, and notes",
    }
    rows = [
        {
            "file": one["file"],
            "answer": _SAID.get(one["answer"]) or " or ".join(one["categories"]),
            "probability": "" if one["answer"] in _SAID else f"{one['probability']:.2f}",
            "then": ", ".join(
                f"{other['category']} {other['probability']:.2f}"
                for other in one["likeliest"][1:]
                if one["answer"] not in _SAID
            ),
            "why": "; ".join(filter(None, (one["why"], *one["notes"]))),
        }
        for one in data["adapters"]
    ]
    table(rows, columns).props("bordered wrap-cells").mark("answers")


_SAID = {"unknown": "I do not know", "error": "it cannot be read"}
_SPECIAL: Mapping[str, Callable[[Here, Job, dict[str, Any]], Awaitable[None]]] = {
    "pca": _components,
    "audit": _health,
    "merge": _merge,
    PREDICT: _answers,
}
