"""What of a file's metadata and configuration stays true after its modules were written anew."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.writing.layouts import alpha_of

__all__ = ["kept_config", "kept_metadata"]

_STALE = ("lora_adapter_metadata", "modelspec.hash_sha256")
_CONFIG = ("auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "revision", "task_type")
# LyCORIS' options of what is now an ordinary pair with α/r.
_NO_LONGER = ("dora_wd", "factor", "rs_lora", "use_conv_cp", "use_cp", "use_tucker")
_OTHER_KINDS = ("loha", "lokr", "dylora", "glora", "ia3", "full", "diag-oft", "boft")


def kept_config(adapter: Adapter) -> dict[str, Any]:
    """The entries of PEFT's configuration that say something about the base model; MLX calls its name `model`."""
    found = {key: adapter.config[key] for key in _CONFIG if key in adapter.config}
    model = adapter.config.get("model")
    return found | ({"base_model_name_or_path": model} if "mlx" in adapter.schemes and isinstance(model, str) else {})


def kept_metadata(metadata: Mapping[str, str], modules: Mapping[str, LoraModule], layout: str) -> dict[str, str]:
    """A file's metadata without its hashes, with kohya's ranks and alphas made right for `modules`.

    `ss_network_dim` and `ss_network_alpha` become the number that all modules share, or "Dynamic" (as kohya's own
    resize writes). Where `ss_network_args` has a `conv_dim`, convolutions wider than 1×1 count there instead.

    Args:
        metadata: of the file that was read.
        modules: what is written.
        layout: one of `LAYOUTS`; "diffusers" has no α, so that α = r there.
    """
    found = {key: value for key, value in metadata.items() if key not in _STALE and not key.startswith("sshs_")}
    arguments = _object(found.get("ss_network_args"))
    wide = [module for module in modules.values() if max(module.kernel, default=1) > 1]
    rest = [module for module in modules.values() if max(module.kernel, default=1) == 1]
    if "conv_dim" not in arguments or not rest or not wide:
        wide, rest = wide or rest, list(modules.values())
    _set(found, "ss_network_dim", (module.rank for module in rest))
    _set(found, "ss_network_alpha", (_alpha(module, layout) for module in rest))
    if not arguments:
        return found
    for key in _NO_LONGER:
        arguments.pop(key, None)
    if str(arguments.get("algo", "")).lower() in _OTHER_KINDS:
        arguments["algo"] = "lora"
    _set(arguments, "conv_dim", (module.rank for module in wide))
    _set(arguments, "conv_alpha", (_alpha(module, layout) for module in wide))
    if arguments != _object(found["ss_network_args"]):
        found["ss_network_args"] = json.dumps(arguments)
    return found


def _alpha(module: LoraModule, layout: str) -> float:
    return float(module.rank) if layout == "diffusers" else alpha_of(module)


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
        found = json.loads(text or "{}")
    except ValueError:  # an older trainer's free text: it stays as it is
        return {}
    return found if isinstance(found, dict) else {}
