"""Every layer alone: the ranking says it all."""

from collections.abc import Callable

from matplotlib.figure import Figure

from lorabench.ablation.layers import LayersFinding
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["figures", "sheets"]


def sheets(_result: Result, _found: LayersFinding) -> list[Sheet]:
    """None beside the ranking's."""
    return []


def figures(_result: Result, _found: LayersFinding) -> dict[str, Callable[[], Figure]]:
    """None beside the ranking's."""
    return {}
