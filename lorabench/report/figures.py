"""The pictures of a result: those whose data are there, drawn from the result alone."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from lorabench.findings import RankedFinding
from lorabench.pictures import house_style, save_picture
from lorabench.report.arms import with_arm
from lorabench.report.latent_figures import latent_figure
from lorabench.report.layer_figures import importance_by_place, layer_importance
from lorabench.report.learned_figures import decodes, fitting_figure, reconstruction_figure
from lorabench.report.phases import phase_report
from lorabench.report.training_figures import accuracy_figure, confusion_figure, curves_figure
from lorabench.results import Result

__all__ = ["drawings", "write_figures"]

_LONGEST = 100  # letters of a picture's file name, each four bytes at most


def write_figures(result: Result, folder: Path, on_figure: Callable[[], None] = lambda: None) -> list[Path]:
    """Write a picture of everything that was found; their paths.

    accuracy.png, learning_curves.png and a confusion_<representation>.png each for the representations over all
    layers; with_without.png where layers were taken away; layer_importance.png, importance_by_place.png,
    degradation.png, groups.png, clusters.png, concepts.png, attribution.png, attention.png, redundancy.png where an
    ablation found such; latent_<representation>.png each, reconstruction.png and fitting.png for learned
    representations. What no file name may have (a "/", more than 100 characters) is replaced.
    """
    written: list[Path] = []
    for name, draw in drawings(result).items():
        path = _free(folder, re.sub(r"[/\\\0]", "_", name)[:_LONGEST], written)
        with house_style():
            written.append(save_picture(draw(), path))
        on_figure()
    return written


def _free(folder: Path, stem: str, taken: list[Path]) -> Path:
    """A file of this name, or with a number where another picture's name became the same."""
    path, number = folder / f"{stem}.png", 2
    while path in taken:
        path, number = folder / f"{stem}-{number}.png", number + 1
    return path


def drawings(result: Result) -> dict[str, Callable[[], Figure]]:
    """Name of every picture that there are data for, and what draws it."""
    found: dict[str, Callable[[], Figure]] = {}
    rows = [row for row in with_arm(result, "none") if row.test_accuracy.n]
    runs = {
        row.representation: [
            run
            for run in result.runs
            if (run.representation, run.ablation) == (row.representation, "none") and not run.error
        ]
        for row in rows
    }
    runs = {name: members for name, members in runs.items() if members}
    if rows:
        found["accuracy"] = functools.partial(accuracy_figure, result, rows)
    if runs:
        found["learning_curves"] = functools.partial(curves_figure, runs)
    for name, members in runs.items():
        found[f"confusion_{name}"] = functools.partial(confusion_figure, name, members, result.classes)
    if isinstance(result.ablation, RankedFinding):
        found["layer_importance"] = functools.partial(layer_importance, result, result.ablation)
        found["importance_by_place"] = functools.partial(importance_by_place, result, result.ablation)
    found |= phase_report(result.ablation).figures(result, result.ablation)
    if result.learned:
        found |= {f"latent_{name}": functools.partial(latent_figure, result, name) for name in result.learned}
        if any(map(decodes, result.learned.values())):
            found["reconstruction"] = functools.partial(reconstruction_figure, result)
        found["fitting"] = functools.partial(fitting_figure, result)
    return {name: functools.partial(_styled, draw) for name, draw in found.items()}


def _styled(draw: Callable[[], Figure]) -> Figure:
    with house_style():
        return draw()
