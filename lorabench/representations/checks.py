"""Arguments of learned representations that nothing can be trained with."""

import math
from collections.abc import Callable
from typing import Any

from lorabench.errors import LorabenchError

__all__ = ["check_arguments"]


def check_arguments(representation: Any) -> None:
    """Refuse them before anything is read or trained.

    Args:
        representation: a `Learned`.

    Raises:
        LorabenchError: one is of another type or out of its range.
    """
    for name, least in representation.least.items():
        kind = "whole number" if isinstance(least, int) else "number"
        _need(representation, name, _from(least), f"a {kind} from {least:g}")
    _need(representation, "seed", lambda value: _is_number(value, whole=True), "a whole number")
    for name in ("learning_rate", "memory_gb", "temperature"):
        _need(representation, name, lambda value: value > 0, "a number above 0")
    for name in ("val_share", "plateau_factor"):
        _need(representation, name, lambda value: 0 < value < 1, "a number between 0 and 1")
    for name in ("dropout", "masked"):
        _need(representation, name, lambda value: 0 <= value < 1, "a share from 0 to below 1")
    for name in representation.widths:
        value = getattr(representation, name)
        if not (isinstance(value, list | tuple) and value and all(_from(1)(width) for width in value)):
            _refuse(name, value, "a list of whole numbers from 1, such as [512,256],")


def _need(representation: Any, name: str, allowed: Callable[[Any], bool], needed: str) -> None:
    known = type(representation).__dataclass_fields__
    if name not in known:
        return
    value = getattr(representation, name)
    if value is None and known[name].default is None:
        return
    if not (_is_number(value) and allowed(value)):
        _refuse(name, value, needed)


def _from(least: int | float) -> Callable[[Any], bool]:
    return lambda value: _is_number(value, whole=isinstance(least, int)) and value >= least


def _is_number(value: object, whole: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return isinstance(value, int | float) and math.isfinite(value)


def _refuse(name: str, value: object, needed: str) -> None:
    raise LorabenchError(f"representation.{name}={value}: {needed} is needed")
