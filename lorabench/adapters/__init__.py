"""One adapter file: its naming scheme, its factors and its scales."""

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.files import read_adapter
from lorabench.adapters.naming import ParsedKey, is_layer_key, layer_names, parse_key
from lorabench.adapters.writing import LAYOUTS, write_adapter

__all__ = [
    "LAYOUTS",
    "Adapter",
    "LoraModule",
    "ParsedKey",
    "is_layer_key",
    "layer_names",
    "parse_key",
    "read_adapter",
    "write_adapter",
]
