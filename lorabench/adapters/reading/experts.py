"""PEFT's updates of a mixture's experts (`target_parameters`): named, and kept out of what is analysed.

PEFT 0.21's `lora.ParamWrapper` stores all E experts of one parameter in one pair, A [r·E, d_in] and B [d_out, r·E],
and scales by α/r. E stands nowhere in the file, so neither rank nor scale nor ΔW can be told. Of several parameters of
one module the inner ones are called `module.base_layer`.
"""

from collections.abc import Mapping
from typing import Any

from lorabench.adapters.reading.patterns import Regex
from lorabench.adapters.reading.sorting import ModuleKeys, SortedKeys

__all__ = ["KIND", "set_experts_aside"]

KIND = "expert_parameters"
_INNER = ".base_layer"


def set_experts_aside(keys: SortedKeys, config: Mapping[str, Any]) -> None:
    """Move the modules that PEFT's `target_parameters` names to what is unsupported.

    Args:
        keys: of the file; changed.
        config: PEFT's configuration, of the file or beside it; its entries may bear a part's name before a dot.
    """
    targets = _listed(config, "target_parameters")
    for name in _wrapped(keys, targets, config):
        keys.set_aside(name, KIND)


def _wrapped(keys: SortedKeys, targets: list[str], config: Mapping[str, Any]) -> list[str]:
    theirs = {name: one for name, one in keys.modules.items() if _is_peft(one)}
    if not targets:
        if config:
            return []
        # without a configuration the nested wrappers give themselves away, and their outermost by its name
        inner = {_outer(name) for name in theirs if name.endswith(_INNER)}
        return [name for name in theirs if _outer(name) in inner]
    parents = {target.rpartition(".")[0] for target in targets}
    return [
        name
        for name in theirs
        if any(_ends(_outer(name), parent) for parent in parents - {""})
        or ("" in parents and not _is_target(name, config))
    ]


def _is_peft(one: ModuleKeys) -> bool:
    return one.pair and one.scheme == "peft"


def _outer(name: str) -> str:
    while name.endswith(_INNER):
        name = name.removesuffix(_INNER)
    return name


def _is_target(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a module is one of `target_modules`, for parameters that are named without their module."""
    for key, value in config.items():
        if key.rpartition(".")[2] != "target_modules":
            continue
        if isinstance(value, list):
            return any(_ends(name, str(one)) for one in value)
        if isinstance(value, str):
            try:
                return Regex(value).matches(name)
            except ValueError:
                return False
    return False


def _listed(config: Mapping[str, Any], wanted: str) -> list[str]:
    found = []
    for key, value in config.items():
        if key.rpartition(".")[2] == wanted and isinstance(value, list):
            found += [one for one in value if isinstance(one, str)]
    return found


def _ends(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")
