"""Pictures of one adapter, or of two: each file of `figures` is one kind, `plotting` writes them.

What needs matplotlib is imported when it is first asked for: numbers are measured without it, and the processes that
draw them need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorabench.adapters.drawing import panels

__all__ = ["panels"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
