"""The factor in front of up @ down, by the conventions of each naming scheme, and in words where it comes from."""

import math
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabench.adapters.layouts import layout_called
from lorabench.adapters.names.identity import split_part
from lorabench.adapters.reading.beside import CONFIG
from lorabench.adapters.reading.header import parse_json
from lorabench.adapters.reading.patterns import compile_patterns
from lorabench.errors import LorabenchError

__all__ = ["HEADER_ALPHAS", "NO_CONFIG", "Scale", "Stated", "find_scale", "finite_number", "saved_config"]

NO_CONFIG = "assumed: alpha = r (no adapter_config.json)"
"""Where α comes from in a file of PEFT's that was parted from its configuration."""

HEADER_ALPHAS = ("lora_alpha", "network_alpha", "alpha")
"""Entries of a safetensors file's metadata that say α where no tensor does; `<part>.lora_alpha` says one part's."""

_DEFAULT = 8  # PEFT's r and lora_alpha
_MAX = sys.float_info.max
_LARGEST = 1e18  # of a scale: its square, and that of its inverse, are numbers in float32 too
_SAVED = "lora_adapter_metadata"


@dataclass(frozen=True)
class Scale:
    """A scale, the α it came from, what had to be supposed, and for people where α was found and how it is used."""

    value: float
    alpha: float | None
    assumed: tuple[str, ...] = ()
    source: str = "assumed: alpha = r"
    rule: str = "alpha / r"


@dataclass(frozen=True)
class Stated:
    """All that a file says about the scale of one module.

    Attributes:
        where: the adapter file, for messages.
        module: canonical module name.
        scheme: naming scheme of its keys.
        rank: r of its factors; 0 where they have none.
        alpha: value of its α tensor.
        config: the configuration that holds for it: of the file's metadata, or beside the file; may be empty.
        config_from: what `config` is called in words.
        header: the metadata of a safetensors file.
        of_peft: whether its keys are PEFT's own, whose configuration must be somewhere.
        alpha_entry: how the configuration calls α.
    """

    where: Path
    module: str
    scheme: str
    rank: int
    alpha: float | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    config_from: str = CONFIG
    header: Mapping[str, str] = field(default_factory=dict)
    of_peft: bool = False
    alpha_entry: str = "lora_alpha"

    @property
    def options(self) -> dict[str, Any]:
        """The configuration's entries for the module's part, without its prefix: "unet.r" is "r" for the U-Net."""
        prefix = _prefix(self.module, self.config)
        return {key.removeprefix(prefix): value for key, value in self.config.items() if key.startswith(prefix)}

    def asked_rank(self) -> int:
        """The rank that PEFT's configuration asks for: by `rank_pattern`, else `r`, else 8.

        Raises:
            LorabenchError: it is no whole number above 0.
        """
        options = self.options
        asked = _by_pattern(self, options, "rank_pattern")
        asked = options.get("r") if asked is None else asked
        rank = finite_number(self.where, "r", _DEFAULT if asked is None else asked)
        if rank <= 0:
            raise LorabenchError(
                f"{self.where}: r in adapter_config.json is {rank:g}; a number above 0 is needed. Repair it."
            )
        return int(rank)


def find_scale(stated: Stated) -> Scale:
    """The scale of one module.

    An α tensor wins (kohya: α/r). Then the configuration: PEFT's α/r, or α/√r with `use_rslora` (Kalajdzievski
    2023), with `rank_pattern` and `alpha_pattern`, and MLX's `scale`. Then α in the header. Else α = r, so 1.

    Raises:
        LorabenchError: α or a value of the configuration is no finite number, or the scale is one that no training has.
    """
    found = _stated_scale(stated)
    if found.value and not 1 / _LARGEST <= abs(found.value) <= _LARGEST:
        raise LorabenchError(
            f"{stated.where}: the scale of {stated.module} is {found.value:.3g} ({found.rule}), and no training has "
            f"one beyond {1 / _LARGEST:g} and {_LARGEST:g}. Remove this adapter or repair its alpha."
        )
    return found


def _stated_scale(stated: Stated) -> Scale:
    if stated.alpha is not None:
        if not math.isfinite(stated.alpha):
            raise LorabenchError(
                f"{stated.where}: alpha of {stated.module} is {stated.alpha}. Remove this adapter or repair its alpha."
            )
        return Scale(stated.alpha / stated.rank, stated.alpha, source="alpha tensor")
    entry = layout_called(stated.scheme).scale_entry
    if entry:
        return _stated_itself(stated, entry)
    if stated.config:
        return _peft(stated)
    entry, alpha = _header_alpha(stated)
    if alpha is not None:
        return Scale(alpha / stated.rank, alpha, source=f"metadata: {entry}")
    note = f"no alpha in the file: alpha = r = {stated.rank}, so scale 1"
    # PEFT keeps α in the file beside; diffusers, whose names begin with a part of the pipeline, knows none
    parted = layout_called(stated.scheme).beside and (stated.of_peft or not split_part(stated.module)[0])
    return Scale(1.0, None, (note,), NO_CONFIG if parted else "assumed: alpha = r")


def saved_config(where: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's configuration that newer diffusers keeps in a safetensors file's metadata, empty where there is none.

    Its entries bear the part's name: `{"unet.r": 4, "unet.lora_alpha": 8}`.
    """
    text = metadata.get(_SAVED)
    if text is None:
        return {}
    try:
        config = parse_json(text)
    except ValueError as error:
        raise LorabenchError(f"{where}: {_SAVED} is not valid JSON ({error}). Repair it.") from error
    if not isinstance(config, dict):
        raise LorabenchError(f"{where}: {_SAVED} is no JSON object. Repair it.")
    return config


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


def _prefix(module: str, config: Mapping[str, Any]) -> str:
    word = module.split(".")[0]
    return next((f"{word}." for entry in ("r", "lora_alpha") if f"{word}.{entry}" in config), "")


def _stated_itself(stated: Stated, entry: str) -> Scale:
    """mlx-lm's: the factor, and no α."""
    config = stated.config
    parameters = config.get("lora_parameters", config)
    source = CONFIG if entry in config or "lora_parameters" in config else "assumed: scale 1"
    if not isinstance(parameters, Mapping) or entry not in parameters:
        note = "no scale in adapter_config.json: scale 1 (mlx-lm's own default is 20)"
        return Scale(1.0, None, (note,), source, entry)
    value = finite_number(stated.where, entry, parameters[entry])
    left_out = ("alpha in lora_parameters was left out: only early mlx-lm multiplied by alpha/r",)
    return Scale(value, None, left_out if "alpha" in parameters else (), source, entry)


def _peft(stated: Stated) -> Scale:
    options, where, rank = stated.options, stated.where, stated.rank
    if not options.keys() & {"r", stated.alpha_entry} and any(
        key.endswith((".r", ".lora_alpha")) for key in stated.config
    ):  # the file speaks of its other parts alone
        return Scale(1.0, None, (f"no alpha for this part: alpha = r = {rank}, so scale 1",))
    assumed = []
    alpha = _by_pattern(stated, options, "alpha_pattern")
    if alpha is None:
        alpha = options.get(stated.alpha_entry, options.get("lora_alpha"))
    if alpha is None:
        alpha = _DEFAULT
        assumed.append(f"no lora_alpha in adapter_config.json: PEFT's default {_DEFAULT}")
    asked = _by_pattern(stated, options, "rank_pattern") or options.get("r", _DEFAULT)
    if asked != rank:
        assumed.append(f"adapter_config.json says r = {reprlib.repr(asked)}, the tensors say {rank}: {rank} is used")
    number = finite_number(where, "lora_alpha", alpha)
    root = bool(options.get("use_rslora", False))
    value = number / (math.sqrt(rank) if root else rank)
    return Scale(value, number, tuple(assumed), stated.config_from, "alpha / sqrt(r)" if root else "alpha / r")


def _by_pattern(stated: Stated, options: Mapping[str, Any], key: str) -> object:
    """PEFT's rule: the first key that is the module's name, or a regular expression for its end."""
    patterns = options.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise LorabenchError(f"{stated.where}: {key} in adapter_config.json is no JSON object. Repair it.")
    if not patterns:
        return None
    name = stated.module.removeprefix(_prefix(stated.module, stated.config))
    try:
        first = compile_patterns(tuple(patterns), stated.where).first(name)
    except ValueError as error:
        raise LorabenchError(f"{stated.where}: {key} in adapter_config.json {error}. Repair it.") from error
    return None if first is None else patterns[first]


def _header_alpha(stated: Stated) -> tuple[str, float | None]:
    """The entry of the header that says this module's α, and its value."""
    header = stated.header
    word = split_part(stated.module)[0]
    for entry in (f"{word}.lora_alpha", *HEADER_ALPHAS):
        try:
            alpha = float(header.get(entry, ""))
        except ValueError:  # a trainer's "None", or no such entry
            continue
        if math.isfinite(alpha):
            return entry, alpha
    return "", None
