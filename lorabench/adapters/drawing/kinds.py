"""The kinds of pictures, found from disk: a file of `figures` is one, and nothing else names it.

Such a file has:

- `ADAPTERS`: how many adapters a picture is of.
- `PATTERN`: whether it draws the modules of `Subject.pattern` alone, on as many pictures as they need; others draw one.
- `measure(*subjects)`: what is drawn, as numbers and words, an entry a picture. It needs no matplotlib.
- `draw(page)`: the figure of one entry. It needs no torch; with `drawing.panels` comes matplotlib.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from lorabench.adapters.drawing import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lorabench.adapters.drawing.subject import Subject

__all__ = ["ALL", "KINDS", "FigureKind", "adapters_of", "kind_module"]

ALL = "all"
KINDS = tuple(sorted(module.name for module in pkgutil.iter_modules(figures.__path__)))
"""What can be drawn, but for `ALL`."""


@runtime_checkable
class FigureKind(Protocol):
    """A file of `figures`."""

    ADAPTERS: int
    PATTERN: bool

    def measure(self, *subjects: "Subject") -> Sequence[Any]:
        """What each picture shows."""

    def draw(self, page: Any) -> "Figure":
        """One picture."""


def kind_module(kind: str) -> FigureKind:
    """The file that draws this kind."""
    return cast("FigureKind", importlib.import_module(f"{figures.__name__}.{kind}"))


def adapters_of(kind: str) -> tuple[int, ...]:
    """How many adapters may be drawn: all kinds are drawn of one, or of two and then compared."""
    if kind == ALL:
        return tuple(sorted({kind_module(name).ADAPTERS for name in KINDS}))
    return (kind_module(kind).ADAPTERS,)
