"""The layouts of adapter files, an object each, found by themselves from this folder. Nothing here needs torch."""

import importlib
from functools import lru_cache
from pathlib import Path

from lorabench.adapters.layouts.base import Layout, WrittenLayout
from lorabench.errors import LorabenchError

__all__ = ["Layout", "WrittenLayout", "layout_called", "layouts", "written_layout", "written_layouts"]


@lru_cache
def layouts() -> dict[str, Layout]:
    """Name -> layout, one for every file of this folder."""
    names = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in ("__init__", "base"))
    objects = (importlib.import_module(f"{__name__}.{name}").LAYOUT for name in names)
    return {layout.name: layout for layout in objects}


def layout_called(scheme: str) -> Layout:
    """The layout of this naming scheme; one that says nothing where the names alone tell of none.

    >>> layout_called("mlx").transposed, layout_called("").transposed
    (True, False)
    """
    return layouts().get(scheme) or Layout()


@lru_cache
def written_layouts() -> dict[str, WrittenLayout]:
    """Name -> layout, of those that can be written, in the order of commands' choices."""
    found = [layout for layout in layouts().values() if isinstance(layout, WrittenLayout)]
    return {layout.name: layout for layout in sorted(found, key=lambda layout: layout.place)}


def written_layout(name: str) -> WrittenLayout:
    """The layout of this name.

    Raises:
        LorabenchError: there is none that can be written.
    """
    if name not in written_layouts():
        raise LorabenchError(f"layout={name!r}: allowed are {', '.join(written_layouts())}.")
    return written_layouts()[name]
