"""One adapter file: read, inspect, analyse, resize, merge, compare, convert and draw it.

What is named here is imported when it is first asked for: `python -m lorabench.adapters inspect` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorabench.adapters.adapter import Adapter, LoraModule
    from lorabench.adapters.files import load
    from lorabench.adapters.naming import ParsedKey, component, is_layer_key, layer_names, parse_key
    from lorabench.adapters.writing import LAYOUTS, save

__all__ = [
    "LAYOUTS",
    "Adapter",
    "LoraModule",
    "ParsedKey",
    "component",
    "is_layer_key",
    "layer_names",
    "load",
    "parse_key",
    "save",
]

_HOMES = {
    "adapter": ("Adapter", "LoraModule"),
    "files": ("load",),
    "naming": ("ParsedKey", "component", "is_layer_key", "layer_names", "parse_key"),
    "writing": ("LAYOUTS", "save"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
