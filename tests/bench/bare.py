"""Lets lorabench be imported where jaxtyping and psutil are missing: import this module first.

A bare GPU machine has torch, pytorch-lightning, torchmetrics, safetensors and numpy. Of what lorabench needs
beside them, its numbers need nothing but jaxtyping's names, which nobody checks there: `Float[Tensor, "n f"]` is
taken for `Tensor`.
"""

import importlib.util
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

_NAMES = (
    "Bool", "Complex64", "Float", "Float32", "Float64", "Int", "Int32", "Int64", "Integer", "Shaped", "UInt8",
)  # fmt: skip


class _Unchecked:
    """Stands for any of jaxtyping's array types."""

    def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
        return item[0]


if importlib.util.find_spec("jaxtyping") is None:
    _module = ModuleType("jaxtyping", "A stand-in: its types are the arrays' own.")
    for _name in _NAMES:
        setattr(_module, _name, _Unchecked)
    sys.modules["jaxtyping"] = _module

if importlib.util.find_spec("psutil") is None:
    _free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    _module = ModuleType("psutil", "A stand-in: the memory that was free at the start.")
    _module.virtual_memory = lambda: SimpleNamespace(available=_free)  # type: ignore[attr-defined]
    sys.modules["psutil"] = _module
