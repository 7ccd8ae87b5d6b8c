"""Representations on all layers: their differences, the controls and the ceiling."""

from collections.abc import Callable

from matplotlib.figure import Figure

from lorabench.ablation.none import NoneFinding
from lorabench.report.between import between_sheet
from lorabench.report.controls import controls_sheets
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]


def sheets(result: Result, found: NoneFinding) -> list[Sheet]:
    """The differences, and the controls."""
    return [*([between_sheet(found.between, found.against)] if found.between else []), *controls_sheets(result)]


def figures(_result: Result, _found: NoneFinding) -> dict[str, Callable[[], Figure]]:
    """None beside those of the representations."""
    return {}
