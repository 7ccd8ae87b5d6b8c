"""What clashes in a merge, as a person reads it: the findings, the worst first, and every module of two adapters."""

from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui

from lorabench.text import counted
from lorabench.web.frame import severity_chip, table

__all__ = ["show_clashes"]

_LEVELS = ("error", "warning", "ok")
_MODULE = {
    "module": "module",
    "clashes": "clashes in",
    "cosine": "cosine of w·ΔW",
    "shared": "shared directions",
    "chance": "by chance",
    "sign_conflict": "signs that differ",
    "norm_ratio": "ratio of norms",
}


def show_clashes(found: Mapping[str, Any], merged: bool = False) -> None:
    """A preflight's findings and modules.

    Args:
        found: `Preflight.as_dict`, as it came through JSON.
        merged: whether the merge was done.
    """
    findings = found["findings"]
    with ui.card().classes("w-full").props('flat bordered role=status aria-label="What clashes"').mark("clashes"):
        ui.label(_verdict(findings, merged)).classes("text-lg text-bold")
        for level in _LEVELS[:2]:
            for one in findings:
                if one["level"] == level:
                    _finding(one)
        fine = [one for one in findings if one["level"] == "ok"]
        if fine:
            with ui.expansion(f"{counted(len(fine), 'check')} found nothing", icon="check").classes("w-full"):
                for one in fine:
                    _finding(one)
    for pair in found["pairs"]:
        _pair(pair)


def _verdict(findings: Sequence[Mapping[str, Any]], merged: bool) -> str:
    errors = sum(one["level"] == "error" for one in findings)
    if any(one["refused"] for one in findings):
        return f"This cannot be merged as it is: {counted(errors, 'error')}."
    if errors:
        return f"Most likely not what you want: {counted(errors, 'error')}. With “no check” it is merged all the same."
    warnings = sum(one["level"] == "warning" for one in findings)
    does = "It was merged" if merged else "It can be merged"
    return f"{does}; {counted(warnings, 'warning')}." if warnings else f"{does}: nothing clashes."


def _finding(one: Mapping[str, Any]) -> None:
    with ui.row().classes("items-center gap-2 no-wrap w-full"):
        severity_chip(one["level"])
        ui.label(f"{one['check']}: {one['message']}").classes("break-words")


def _pair(pair: Mapping[str, Any]) -> None:
    if not pair["modules"]:
        return
    rows = [
        {
            "module": one["module"],
            "clashes": ", ".join(one["clashes"]),
            "cosine": _number(one["cosine"]),
            "shared": _percent(one["left"], one["right"]),
            "chance": _percent(min(one["chance"], 1)),
            "sign_conflict": _percent(one["sign_conflict"]),
            "norm_ratio": _number(one["norm_ratio"]),
        }
        for one in sorted(pair["modules"], key=lambda one: -len(one["clashes"]))
    ]
    count = sum(bool(row["clashes"]) for row in rows)
    title = f"{pair['first']} and {pair['second']}: {count} of {counted(len(rows), 'module')} clash"
    ui.label(title).classes("text-sm text-bold break-words").props('role=heading aria-level="2"')
    numbers = _MODULE.keys() - {"module", "clashes"}
    shown = table(rows, _MODULE, numbers=numbers, sortable=True, pagination=10)
    shown.classes("wide").props("bordered wrap-cells").mark("modules")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _percent(*values: float | None) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * sum(known) / len(known):.0f} %" if known else "–"
