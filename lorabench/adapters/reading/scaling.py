"""The factor in front of up @ down, by the conventions of each naming scheme."""

import math
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.adapters.reading.header import parse_json
from lorabench.adapters.reading.patterns import compile_patterns
from lorabench.errors import LorabenchError

__all__ = ["Scale", "find_scale", "finite_number", "saved_config"]

_DEFAULT = 8
_MAX = sys.float_info.max


@dataclass(frozen=True)
class Scale:
    """A scale, the α it came from, and what had to be supposed."""

    value: float
    alpha: float | None
    assumed: tuple[str, ...] = ()


def find_scale(
    where: Path, module: str, scheme: str, rank: int, alpha: float | None, config: Mapping[str, Any]
) -> Scale:
    """The scale of one module.

    An α tensor wins (kohya: α/r). Then adapter_config.json: PEFT's α/r, or α/√r with `use_rslora`
    (Kalajdzievski 2023), with `rank_pattern` and `alpha_pattern`, and MLX's `scale`. Else α = r, so 1.

    Args:
        where: the adapter file, for messages.
        module: canonical module name.
        scheme: naming scheme of the module's keys.
        rank: r of the factors.
        alpha: value of the module's α tensor.
        config: the configuration that holds for this scheme: adapter_config.json or the metadata that stands
            for it.

    Raises:
        LorabenchError: α or a value of the config is no finite number.
    """
    if alpha is not None:
        if not math.isfinite(alpha):
            raise LorabenchError(f"{where}: alpha of {module} is {alpha}. Remove this adapter or repair its alpha.")
        return Scale(alpha / rank, alpha)
    if scheme == "mlx":
        return _mlx(where, config)
    if config:
        return _peft(where, module, rank, config)
    return Scale(1.0, None, (f"no alpha in the file: alpha = r = {rank}, so scale 1",))


def saved_config(where: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's configuration that newer diffusers keeps in a safetensors file's metadata, empty where there is
    none.

    Its entries bear the component's name: `{"unet.r": 4, "unet.lora_alpha": 8}`.
    """
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        found = parse_json(text)
    except ValueError as error:
        raise LorabenchError(f"{where}: lora_adapter_metadata is not valid JSON ({error}). Repair it.") from error
    if not isinstance(found, dict):
        raise LorabenchError(f"{where}: lora_adapter_metadata is no JSON object. Repair it.")
    return found


def _mlx(where: Path, config: Mapping[str, Any]) -> Scale:
    parameters = config.get("lora_parameters", config)
    if not isinstance(parameters, Mapping) or "scale" not in parameters:
        return Scale(1.0, None, ("no scale in adapter_config.json: scale 1 (mlx-lm's own default is 20)",))
    value = finite_number(where, "scale", parameters["scale"])
    note = ("alpha in lora_parameters was left out: only early mlx-lm multiplied by alpha/r",)
    return Scale(value, None, note if "alpha" in parameters else ())


def _peft(where: Path, module: str, rank: int, config: Mapping[str, Any]) -> Scale:
    prefix = next((f"{p}." for p in (module.split(".")[0],) if f"{p}.r" in config or f"{p}.lora_alpha" in config), "")
    options = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
    name = module.removeprefix(prefix)
    assumed = []
    alpha = _pattern(where, options, "alpha_pattern", name)
    if alpha is None:
        alpha = options.get("lora_alpha")
    if alpha is None:
        alpha = _DEFAULT
        assumed.append(f"no lora_alpha in adapter_config.json: PEFT's default {_DEFAULT}")
    said = _pattern(where, options, "rank_pattern", name) or options.get("r", _DEFAULT)
    if said != rank:
        assumed.append(f"adapter_config.json says r = {reprlib.repr(said)}, the tensors say {rank}: {rank} is used")
    alpha = finite_number(where, "lora_alpha", alpha)
    root = bool(options.get("use_rslora", False))
    return Scale(alpha / (math.sqrt(rank) if root else rank), alpha, tuple(assumed))


def _pattern(where: Path, options: Mapping[str, Any], key: str, module: str) -> object:
    """PEFT's rule: the first key that is the module's name, or a regular expression for its end."""
    patterns = options.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise LorabenchError(f"{where}: {key} in adapter_config.json is no JSON object. Repair it.")
    if not patterns:
        return None
    try:
        found = compile_patterns(tuple(patterns), where).first(module)
    except ValueError as error:
        raise LorabenchError(f"{where}: {key} in adapter_config.json {error}. Repair it.") from error
    return None if found is None else patterns[found]


def finite_number(where: Path, key: str, value: object) -> float:
    """A number of adapter_config.json.

    Raises:
        LorabenchError: it is none, or not finite in float64.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MAX <= value <= _MAX:
        raise LorabenchError(
            f"{where}: {key} in adapter_config.json is {reprlib.repr(value)}; a finite number is needed. Repair it."
        )
    return float(value)
