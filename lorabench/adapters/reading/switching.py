"""Which parts of a merged projection are switched on: loralib's `enable_lora` (Hu et al. 2021)."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabench.adapters.reading.shapes import MOST_GROUPS, UNPLACED, Fit
from lorabench.errors import LorabenchError

__all__ = ["switches"]


def switches(
    where: Path, module: str, found: Fit, config: Mapping[str, Any]
) -> tuple[tuple[bool, ...], tuple[str, ...]]:
    """The parts of a module's layer, and what is to be said of them; no parts where it is no merged projection.

    A part that is off has no rows in the file; without the configuration all parts are taken for on.

    Args:
        where: the file, for messages.
        module: canonical module name, for messages.
        found: what its shapes say.
        config: adapter_config.json, with `enable_lora` a list of a truth value for every part.

    Raises:
        LorabenchError: `enable_lora` is no such list, or has another number of parts on than the tensors.
    """
    said = config.get("enable_lora")
    if not found.groups:
        return (), ()
    if said is None:
        return (True,) * found.groups, (UNPLACED,)
    right = isinstance(said, list) and len(said) <= MOST_GROUPS and all(isinstance(one, bool) for one in said)
    if not right or sum(said) != found.groups:
        raise LorabenchError(
            f"{where}: enable_lora in adapter_config.json is {reprlib.repr(said)}, and the tensors of module {module} "
            f"are those of {found.groups} parts that are on; a list of true and false, {found.groups} of them true, "
            f"and {MOST_GROUPS} at most, is needed. Repair it."
        )
    on = ", ".join(str(i + 1) for i, one in enumerate(said) if one)
    return tuple(said), (f"merged projection of {len(said)} parts, of which {on} on; the rows of the others are zero",)
