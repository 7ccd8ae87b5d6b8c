"""Arguments of learned representations that nothing can be trained with."""

from collections.abc import Collection
from typing import Any

from lorabench.errors import LorabenchError

__all__ = ["check_arguments"]


def check_arguments(representation: Any, whole: Collection[str]) -> None:
    """Refuse them before anything is trained.

    Args:
        representation: a `Learned`.
        whole: names of arguments that are whole numbers.

    Raises:
        LorabenchError: one is out of its range.
    """
    for name, least in representation.least.items():
        value = getattr(representation, name)
        if value is not None and (not value >= least or (name in whole and not isinstance(value, int))):
            kind = "whole number" if name in whole else "number"
            raise LorabenchError(f"representation.{name}={value}: a {kind} from {least} is needed")
    for name in ("learning_rate", "memory_gb"):
        value = getattr(representation, name)
        if value is not None and not value > 0:
            raise LorabenchError(f"representation.{name}={value}: a number above 0 is needed")
    for name in ("val_share", "plateau_factor"):
        if not 0 < getattr(representation, name) < 1:
            raise LorabenchError(
                f"representation.{name}={getattr(representation, name)}: a number between 0 and 1 is needed"
            )
    for name in representation.widths:
        value = getattr(representation, name)
        if not value or min(value) < 1:
            raise LorabenchError(f"representation.{name}={value}: a list of one width or more, from 1, is needed")
