"""The rules of alerts, one in each file of this folder, found by themselves; their limits are in thresholds.yaml."""

import importlib
from functools import lru_cache
from pathlib import Path

from lorabench.health.rules.base import Rule

__all__ = ["rules"]


@lru_cache
def rules() -> dict[str, Rule]:
    """Name -> rule.

    >>> rules()["dominating"].above
    True
    """
    names = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in ("__init__", "base"))
    return {name: importlib.import_module(f"{__name__}.{name}").RULE for name in names}
