"""The scale of a module of any kind, and in words where it comes from; no weight is looked at."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorabench.adapters.reading.naming import component
from lorabench.adapters.reading.scaling import Scale, find_scale, finite_number
from lorabench.adapters.reading.sorting import ModuleKeys
from lorabench.errors import LorabenchError

__all__ = ["NO_CONFIG", "KnownScale", "scale_of"]

NO_CONFIG = "assumed: alpha = r (no adapter_config.json)"
"""Where α comes from in a file of PEFT's that was parted from its configuration."""


@dataclass(frozen=True)
class KnownScale:
    """A scale, and for people: where α was found and how the scale follows from it."""

    scale: Scale
    source: str
    rule: str


def scale_of(
    where: Path,
    module: str,
    keys: ModuleKeys,
    rank: int,
    alpha: float | None,
    inside: Mapping[str, Any],
    beside: Mapping[str, Any],
) -> KnownScale:
    """The scale of one module.

    LoRA and DoRA: see `find_scale`. LoHa and LoKr: α/r, by PEFT's `alpha` or by the α tensor; LoKr of two whole
    matrices has no rank, and LyCORIS then takes 1. AdaLoRA: PEFT's α / (rank + 1e-5), and α = r where it says 0.

    Args:
        where: the file, for messages.
        module: canonical module name.
        keys: its keys, kind and scheme.
        rank: r; 0 where there is none.
        alpha: value of its α tensor.
        inside: PEFT's configuration in the file's metadata.
        beside: adapter_config.json.

    Raises:
        LorabenchError: α or a value of a configuration is no finite number.
    """
    scheme = keys.scheme
    config = inside or (beside if scheme.startswith(("peft", "mlx")) else {})
    if rank == 0 and (alpha is not None or not config):
        note = () if alpha is None else ("LoKr of two whole matrices: its alpha counts for nothing",)
        return KnownScale(Scale(1.0, alpha, note), "none is needed", "1")
    if keys.form in ("loha", "lokr") and "alpha" in config:
        config = {**config, "lora_alpha": config["alpha"]}
    found = find_scale(where, module, scheme, max(rank, 1), alpha, config)
    if rank == 0:  # PEFT divides by the r of its configuration
        said = config.get("r")
        r = finite_number(where, "r", 8 if said is None else said)
        if r <= 0:
            raise LorabenchError(f"{where}: r in adapter_config.json is {r:g}; a number above 0 is needed. Repair it.")
        found = replace(found, value=found.value / r, assumed=())
    if keys.form == "adalora":
        known = rank if not found.alpha or found.alpha <= 0 else found.alpha
        found = replace(found, value=known / (rank + 1e-5))
        return KnownScale(found, _source(module, keys, alpha, inside, config), "alpha / (r + 1e-5)")
    if alpha is None and scheme == "mlx":
        known_scale = "scale" in config or "lora_parameters" in config
        return KnownScale(found, "adapter_config.json" if known_scale else "assumed: scale 1", "scale")
    root = alpha is None and bool(config.get("use_rslora", False))
    return KnownScale(found, _source(module, keys, alpha, inside, config), "alpha / sqrt(r)" if root else "alpha / r")


def _is_pefts(keys: ModuleKeys) -> bool:
    return any(key.startswith("base_model.") for key in keys.parts.values())


def _source(
    module: str, keys: ModuleKeys, alpha: float | None, inside: Mapping[str, Any], config: Mapping[str, Any]
) -> str:
    if alpha is not None:
        return "alpha tensor"
    if not config:
        # PEFT keeps α in the file beside; diffusers, whose names begin with a component, knows none
        if keys.scheme.startswith("peft") and (component(module) == "model" or _is_pefts(keys)):
            return NO_CONFIG
        return "assumed: alpha = r"
    return "lora_adapter_metadata" if inside else "adapter_config.json"
