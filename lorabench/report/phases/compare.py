"""Representations with and without the best layers, beside their controls."""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from lorabench.ablation.compare import CompareFinding, Fall
from lorabench.pictures import tidy
from lorabench.report.arms import Arm, shown_arms, with_arm
from lorabench.report.controls import controls_sheets, draw_controls
from lorabench.report.numbers import counted, difference, mean_std, method, over, p_value, percent
from lorabench.report.ranked import sheet_title, warning
from lorabench.report.scores import every_arm
from lorabench.report.style import ARM_STYLES, draw_chance, ended, legend_below, percents
from lorabench.report.verdicts import verdict_lines
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]


def sheets(result: Result, found: CompareFinding) -> list[Sheet]:
    """The comparison and its controls; every metric of every arm where there is room."""
    return [_compared(result, found), *controls_sheets(result), every_arm(result)]


def figures(result: Result, found: CompareFinding) -> dict[str, Callable[[], Figure]]:
    """Every representation with and without layers."""
    if not any(row.test_accuracy.n for row in result.summary):
        return {}
    return {"with_without": functools.partial(_with_without, result, found)}


def _compared(result: Result, found: CompareFinding) -> Sheet:
    """Every representation with and without the best layers, and the controls."""
    columns = {"features": {row.representation: str(row.features) for row in with_arm(result, "none") if row.features}}
    spare = []
    for arm in shown_arms(found):
        header = arm.title.replace(" ", "\n", 1)
        columns[header] = {row.representation: mean_std(row.test_accuracy, row) for row in with_arm(result, arm.name)}
        if arm.kind == "top":
            columns |= _differences(
                [row for row in found.differences if (row.ablation, row.against) == (arm.name, "none")]
            )
        elif arm.kind != "none":
            spare.append(header)
    names = list(dict.fromkeys(row.representation for row in result.summary))
    return Sheet(
        title=sheet_title(
            result, f"What {result.dataset['name']} says about the {result.target}, with and without layers"
        ),
        columns=("representation", *columns),
        rows=[(name, *(column.get(name, "–") for column in columns.values())) for name in names],
        caption=_caption(result, found),
        text=("representation",),
        spare=("features", *reversed(spare[1:]), "p", *spare[:1], "p, Holm"),
    )


def _differences(rows: Sequence[Fall]) -> dict[str, dict[str, str]]:
    if not rows:
        return {}
    found = {
        "difference\n[95 %]": {row.representation: difference(row.difference, row.claimed) for row in rows},
        "p": {row.representation: p_value(row.claimed.p) for row in rows},
    }
    if not all(math.isnan(row.holm) for row in rows):
        found["p, Holm"] = {row.representation: p_value(row.holm) for row in rows}
    return found


def _caption(result: Result, found: CompareFinding) -> list[str]:
    arms = shown_arms(found)
    seeds = max((row.test_accuracy.n for row in with_arm(result, "none")), default=0)
    taken = next((f"{arm.layers} of {result.dataset['layers']} layers taken away" for arm in arms if arm.layers), "")
    draws = next((f"random: mean of {arm.draws} sets" for arm in arms if arm.draws), "")
    said = (
        f"test accuracy, mean ± std over {over(result, seeds)}, in %",
        taken,
        draws,
        f"chance {percent(result.chance)}",
    )
    pairs = [
        f"difference: to all layers, in points, paired; its interval and p are {method(row)}"
        for row in found.differences[:1]
    ]
    lines = [counted(result), " · ".join(text for text in said if text), *pairs, *_beside_random(found, arms)]
    return [*lines, *verdict_lines(found), *warning(result), *_failures(result, arms)]


def _failures(result: Result, arms: Sequence[Arm]) -> list[str]:
    names = {arm.name: arm.title for arm in arms}
    reasons: dict[str, list[str]] = {}
    for row in result.summary:
        for error in dict.fromkeys(row.failed):
            reasons.setdefault(f"{row.representation} failed: {error}", []).append(
                names.get(row.ablation, row.ablation)
            )
    return [
        reason if len(where) == len(arms) else f"{reason} ({', '.join(where)})" for reason, where in reasons.items()
    ]


def _beside_random(found: CompareFinding, arms: Sequence[Arm]) -> list[str]:
    """Where the best layers are missed more than as many random ones."""
    drawn = {arm.name: arm for arm in arms if arm.kind == "random"}
    rows = [row for row in found.differences if row.against in drawn]
    if not rows:
        return []
    below = [
        f"{row.representation} ({difference(row.difference, row.claimed)})" for row in rows if row.claimed.high < 0
    ]
    beside = f"the best are missed more than {drawn[rows[0].against].title} (interval under 0) by"
    return [f"{beside}: {', '.join(below) or 'no representation'}"]


def _with_without(result: Result, found: CompareFinding) -> Figure:
    """Test accuracy of every representation, a marker an arm; the best over all layers on top."""
    arms = shown_arms(found)
    names = list(dict.fromkeys(row.representation for row in result.summary))
    whole = {row.representation: row.test_accuracy.mean for row in with_arm(result, arms[0].name)}
    names.sort(key=lambda name: np.nan_to_num(whole.get(name, np.nan), nan=-1))
    figure = Figure(figsize=(7.5, 1.9 + 0.11 * max(len(arms), 3) * len(names)), layout="constrained")
    axes = figure.subplots()
    for place in range(1, len(names), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="0.96", zorder=0)
    draw_chance(axes, result, vertical=True)
    draw_controls(axes, result)
    dodge = np.linspace(0.32, -0.32, len(arms))
    seen: set[str] = set()
    for arm, shift in zip(arms, dodge, strict=True):
        rows = {row.representation: row for row in with_arm(result, arm.name) if row.test_accuracy.n}
        places = [place for place, name in enumerate(names) if name in rows]
        chosen = [rows[names[place]].test_accuracy for place in places]
        seen |= set(rows)
        colour, marker = ARM_STYLES[arm.kind]
        axes.errorbar(
            percents([value.mean for value in chosen]), np.array(places) + shift,
            xerr=np.nan_to_num(percents([value.std for value in chosen])),
            fmt=marker, color=colour, markersize=4.5, elinewidth=1, capsize=2, label=arm.title,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [name if name in seen else f"{name} (failed)" for name in names])
    axes.set_ylim(-0.5, len(names) - 0.5)
    axes.set_xlim(left=-0.015 * axes.get_xlim()[1])  # a marker at 0 stays whole
    tidy(axes, "x")
    seeds = max((row.test_accuracy.n for row in result.summary if row.ablation == arms[0].name), default=0)
    axes.set_xlabel(f"test accuracy, % (mean ± std over {over(result, seeds)})", fontsize=9)
    title = f"{result.dataset['name']}: reading the {result.target} with and without layers"
    axes.set_title(ended(result, title), fontsize=10)
    legend_below(figure, [axes], columns=3)
    return figure
