"""The kinds of modules that are read as factors of their ΔW, an object each, found by themselves from this folder."""

import importlib
from functools import lru_cache
from pathlib import Path

from lorabench.adapters.kinds.base import Kind

__all__ = ["kinds"]

_NO_KINDS = ("__init__", "base", "tucker")


@lru_cache
def kinds() -> dict[str, Kind]:
    """Name -> kind, one for every file of this folder.

    >>> kinds()["lokr"].title
    'LoKr'
    """
    names = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in _NO_KINDS)
    objects = (importlib.import_module(f"{__name__}.{name}").KIND for name in names)
    return {kind.name: kind for kind in objects}
