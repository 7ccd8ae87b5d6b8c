"""Which parts of a merged projection are switched on: loralib's `enable_lora` (Hu et al. 2021)."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabench.adapters.kinds.base import Fit
from lorabench.adapters.kinds.lora import MOST_GROUPS
from lorabench.errors import LorabenchError

__all__ = ["UNPLACED", "switches"]

UNPLACED = (
    "merged projection: no enable_lora in adapter_config.json says which parts of the layer are switched on, "
    "so the rows of those that may be off are missing"
)
"""What `LoraModule.assumed` holds where ΔW may have fewer rows than its layer; such a module cannot be written."""


def switches(where: Path, module: str, fit: Fit, config: Mapping[str, Any]) -> tuple[tuple[bool, ...], tuple[str, ...]]:
    """The parts of a module's layer, and what is to be said of them; no parts where it is no merged projection.

    A part that is off has no rows in the file; without the configuration all parts are taken for on.

    Args:
        where: the file, for messages.
        module: canonical module name, for messages.
        fit: what its shapes say.
        config: adapter_config.json, with `enable_lora` a list of a truth value for every part.

    Raises:
        LorabenchError: `enable_lora` is no such list, or has another number of parts on than the tensors.
    """
    enabled = config.get("enable_lora")
    if not fit.groups:
        return (), ()
    if enabled is None:
        return (True,) * fit.groups, (UNPLACED,)
    right = isinstance(enabled, list) and len(enabled) <= MOST_GROUPS and all(isinstance(on, bool) for on in enabled)
    if not right or sum(enabled) != fit.groups:
        raise LorabenchError(
            f"{where}: enable_lora in adapter_config.json is {reprlib.repr(enabled)}, and the tensors of module "
            f"{module} are those of {fit.groups} parts that are on; a list of true and false, {fit.groups} of them "
            f"true, and {MOST_GROUPS} at most, is needed. Repair it."
        )
    placed = ", ".join(str(i) for i, on in enumerate(enabled, 1) if on)
    note = f"merged projection of {len(enabled)} parts, of which {placed} on; the rows of the others are zero"
    return tuple(enabled), (note,)
