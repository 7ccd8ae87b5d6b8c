"""What every phase's finding looks like: a module a phase, with its tables and its pictures."""

import importlib
from collections.abc import Callable
from typing import Protocol, cast, runtime_checkable

from matplotlib.figure import Figure

from lorabench.findings import Finding
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["PhaseReport", "phase_report"]


@runtime_checkable
class PhaseReport(Protocol):
    """A module `lorabench.report.phases.NAME` of the phase `lorabench.ablation.NAME`; the finding is of its class."""

    def sheets(self, result: Result, found: Finding) -> list[Sheet]:
        """Its tables, most important first; beside a ranking's and those of the representations."""
        ...

    def figures(self, result: Result, found: Finding) -> dict[str, Callable[[], Figure]]:
        """Name of every picture, and what draws it."""
        ...


def phase_report(found: Finding) -> PhaseReport:
    """The module that shows a finding."""
    return cast("PhaseReport", importlib.import_module(f"{__name__}.{found.phase()}"))
