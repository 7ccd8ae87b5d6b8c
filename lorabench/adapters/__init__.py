"""One adapter file: read, inspect, analyse, resize, merge, compare, convert and draw it.

What is named here is imported when it is first asked for: `python -m lorabench.adapters inspect` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorabench.adapters.adapter import Adapter, LoraModule
    from lorabench.adapters.comparing import Comparison, compare
    from lorabench.adapters.components import pca, pca_across
    from lorabench.adapters.converting import Conversion, convert
    from lorabench.adapters.drawing.pictures import plot
    from lorabench.adapters.editing import edit
    from lorabench.adapters.files import load
    from lorabench.adapters.fingerprints import Duplicates, find_duplicates, fingerprint
    from lorabench.adapters.inspection import Inspection, inspect
    from lorabench.adapters.library import scan
    from lorabench.adapters.merge_report import MergeReport
    from lorabench.adapters.merging import merge
    from lorabench.adapters.naming import ParsedKey, component, is_layer_key, layer_names, parse_key
    from lorabench.adapters.preflight import Preflight
    from lorabench.adapters.receipt import Receipt
    from lorabench.adapters.resize_checks import validate
    from lorabench.adapters.resizing import resize
    from lorabench.adapters.table import ModuleRow, Table, read_table
    from lorabench.adapters.writing import LAYOUTS, layout_of, save

__all__ = [
    "LAYOUTS",
    "Adapter",
    "Comparison",
    "Conversion",
    "Duplicates",
    "Inspection",
    "LoraModule",
    "MergeReport",
    "ModuleRow",
    "ParsedKey",
    "Preflight",
    "Receipt",
    "Table",
    "compare",
    "component",
    "convert",
    "edit",
    "find_duplicates",
    "fingerprint",
    "inspect",
    "is_layer_key",
    "layer_names",
    "layout_of",
    "load",
    "merge",
    "parse_key",
    "pca",
    "pca_across",
    "plot",
    "read_table",
    "resize",
    "save",
    "scan",
    "validate",
]

_HOMES = {
    "adapter": ("Adapter", "LoraModule"),
    "comparing": ("Comparison", "compare"),
    "components": ("pca", "pca_across"),
    "converting": ("Conversion", "convert"),
    "drawing.pictures": ("plot",),
    "editing": ("edit",),
    "files": ("load",),
    "fingerprints": ("Duplicates", "find_duplicates", "fingerprint"),
    "inspection": ("Inspection", "inspect"),
    "library": ("scan",),
    "merge_report": ("MergeReport",),
    "merging": ("merge",),
    "naming": ("ParsedKey", "component", "is_layer_key", "layer_names", "parse_key"),
    "preflight": ("Preflight",),
    "receipt": ("Receipt",),
    "resize_checks": ("validate",),
    "resizing": ("resize",),
    "table": ("ModuleRow", "Table", "read_table"),
    "writing": ("LAYOUTS", "layout_of", "save"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
