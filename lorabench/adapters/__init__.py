"""One adapter file: read, inspect, analyse, resize, merge, compare, convert and draw it.

What is named here is imported when it is first asked for: `python -m lorabench.adapters inspect` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorabench.adapters.adapter import Adapter, LoraModule
    from lorabench.adapters.comparing.fingerprints import Duplicates, find_duplicates, fingerprint
    from lorabench.adapters.comparing.whole import Comparison, compare
    from lorabench.adapters.components import pca, pca_across
    from lorabench.adapters.drawing.pictures import plot
    from lorabench.adapters.merging.preflight import Preflight, preflight
    from lorabench.adapters.merging.recipe import Recipe
    from lorabench.adapters.merging.report import MergeReport
    from lorabench.adapters.merging.whole import merge
    from lorabench.adapters.metadata.editing import edit
    from lorabench.adapters.metadata.inspection import Inspection, inspect
    from lorabench.adapters.metadata.library import scan
    from lorabench.adapters.reading.files import load
    from lorabench.adapters.reading.naming import ParsedKey, component, is_layer_key, layer_names, parse_key
    from lorabench.adapters.reading.table import ModuleRow, Table, read_table
    from lorabench.adapters.resizing.checks import validate
    from lorabench.adapters.resizing.receipt import Receipt
    from lorabench.adapters.resizing.resizing import resize
    from lorabench.adapters.writing.converting import Conversion, convert, notes_on_writing
    from lorabench.adapters.writing.saving import LAYOUTS, layout_of, save

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
    "Recipe",
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
    "notes_on_writing",
    "parse_key",
    "pca",
    "pca_across",
    "plot",
    "preflight",
    "read_table",
    "resize",
    "save",
    "scan",
    "validate",
]

_HOMES = {
    "adapter": ("Adapter", "LoraModule"),
    "comparing.whole": ("Comparison", "compare"),
    "components": ("pca", "pca_across"),
    "writing.converting": ("Conversion", "convert", "notes_on_writing"),
    "drawing.pictures": ("plot",),
    "metadata.editing": ("edit",),
    "reading.files": ("load",),
    "comparing.fingerprints": ("Duplicates", "find_duplicates", "fingerprint"),
    "metadata.inspection": ("Inspection", "inspect"),
    "metadata.library": ("scan",),
    "merging.recipe": ("Recipe",),
    "merging.report": ("MergeReport",),
    "merging.whole": ("merge",),
    "reading.naming": ("ParsedKey", "component", "is_layer_key", "layer_names", "parse_key"),
    "merging.preflight": ("Preflight", "preflight"),
    "resizing.receipt": ("Receipt",),
    "resizing.checks": ("validate",),
    "resizing.resizing": ("resize",),
    "reading.table": ("ModuleRow", "Table", "read_table"),
    "writing.saving": ("LAYOUTS", "layout_of", "save"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
