"""What of a file's metadata stays true after its modules were written anew."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.layouts import WrittenLayout
from lorabench.adapters.reading.scaling import HEADER_ALPHAS
from lorabench.adapters.writing.tensors import alpha_of

__all__ = ["kept_metadata"]

# Hashes, and ranks and alphas that a loader may use: the tensors or the configuration say them now.
_STALE = re.compile(
    rf"lora_adapter_metadata|modelspec\.hash_sha256|sshs_.*|{'|'.join(HEADER_ALPHAS)}|.*\.(lora_alpha|r)"
)
# LyCORIS' options of what is now an ordinary pair with α/r.
_NO_LONGER = ("dora_wd", "factor", "rs_lora", "use_conv_cp", "use_cp", "use_tucker")
_OTHER_KINDS = ("loha", "lokr", "dylora", "glora", "ia3", "full", "diag-oft", "boft")


def kept_metadata(
    metadata: Mapping[str, str], modules: Mapping[str, LoraModule], layout: WrittenLayout
) -> dict[str, str]:
    """A file's metadata without its hashes, with kohya's ranks and alphas made right for `modules`.

    `ss_network_dim` and `ss_network_alpha` become the number that all modules share, or "Dynamic" (as kohya's own
    resize writes). Where `ss_network_args` has a `conv_dim`, convolutions wider than 1×1 count there instead.

    Args:
        metadata: of the file that was read.
        modules: what is written.
        layout: that is written; where it has no place for α, α = r.
    """
    kept = {key: value for key, value in metadata.items() if not _STALE.fullmatch(key)}
    arguments = _object(kept.get("ss_network_args"))
    wide = [module for module in modules.values() if max(module.kernel, default=1) > 1]
    rest = [module for module in modules.values() if max(module.kernel, default=1) == 1]
    if "conv_dim" not in arguments or not rest or not wide:
        wide, rest = wide or rest, list(modules.values())
    _set(kept, "ss_network_dim", (module.rank for module in rest))
    _set(kept, "ss_network_alpha", (_alpha(module, layout) for module in rest))
    if not arguments:
        return kept
    for key in _NO_LONGER:
        arguments.pop(key, None)
    if str(arguments.get("algo", "")).lower() in _OTHER_KINDS:
        arguments["algo"] = "lora"
    _set(arguments, "conv_dim", (module.rank for module in wide))
    _set(arguments, "conv_alpha", (_alpha(module, layout) for module in wide))
    if arguments != _object(kept["ss_network_args"]):
        kept["ss_network_args"] = json.dumps(arguments)
    return kept


def _alpha(module: LoraModule, layout: WrittenLayout) -> float:
    return float(module.rank) if layout.alpha == "folded" else alpha_of(module)


def _set(entries: dict[str, Any], key: str, values: Iterable[float | int]) -> None:
    """Correct an entry that is there, in the type that it has; one that is right keeps its spelling."""
    if key not in entries:
        return
    several = set(values)
    right = several.pop() if len(several) == 1 else "Dynamic"
    try:
        same = float(entries[key]) == right
    except (TypeError, ValueError):
        same = entries[key] == right
    if not same:
        entries[key] = str(right) if isinstance(entries[key], str) else right


def _object(text: str | None) -> dict[str, Any]:
    try:
        entries = json.loads(text or "{}")
    except ValueError:  # an older trainer's free text: it stays as it is
        return {}
    return entries if isinstance(entries, dict) else {}
