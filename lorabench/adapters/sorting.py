"""The keys of one file by module and part, and what of them cannot be analysed; no weight is looked at."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lorabench.adapters.naming import FACTORS, parse_key
from lorabench.errors import LorabenchError

__all__ = ["SortedKeys", "sort_keys"]


@dataclass
class SortedKeys:
    """What the keys of a file say.

    Attributes:
        modules: module -> part -> key, of the modules that have a low-rank update.
        schemes: module -> naming scheme.
        unsupported: kind -> keys that cannot be analysed.
        magnitudes: modules with a DoRA magnitude beside their update.
    """

    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    schemes: dict[str, str] = field(default_factory=dict)
    unsupported: dict[str, list[str]] = field(default_factory=dict)
    magnitudes: set[str] = field(default_factory=set)


def sort_keys(file: Path, names: Iterable[str], leftovers: Iterable[str] = ()) -> SortedKeys:
    """Sort the keys of a file.

    Args:
        file: for messages.
        names: its tensors' keys.
        leftovers: keys of what is no tensor.

    Raises:
        LorabenchError: two keys are the same part of the same module.
    """
    keys = SortedKeys()
    kinds: dict[str, str] = {}
    for key in names:
        parsed = parse_key(key)
        if parsed.part not in FACTORS:
            keys.unsupported.setdefault(parsed.part, []).append(key)
            kinds.setdefault(parsed.module, parsed.part)
            continue
        parts = keys.modules.setdefault(parsed.module, {})
        if parsed.part in parts:
            raise LorabenchError(
                f"{file}: {parts[parsed.part]} and {key} are both the {parsed.part} of module {parsed.module}. "
                "Keep one adapter a file."
            )
        parts[parsed.part] = key
        if parsed.is_layer:
            keys.schemes.setdefault(parsed.module, parsed.scheme)
    keys.magnitudes = {name for name, kind in kinds.items() if kind == "dora"}
    for name, parts in list(keys.modules.items()):
        # AdaLoRA's ΔW needs lora_E and a rank budget; an α alone belongs to LoKr, LoHa and the like.
        if kinds.get(name) == "adalora" or set(parts) == {"alpha"}:
            keys.unsupported.setdefault(kinds.get(name, "alpha_alone"), []).extend(parts.values())
            del keys.modules[name]
            keys.schemes.pop(name, None)
    left = list(leftovers)
    if left:
        keys.unsupported.setdefault("other", []).extend(left)
    return keys
