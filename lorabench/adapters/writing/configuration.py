"""adapter_config.json of PEFT: every entry of the file that was read is carried, made true, or refused by name."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.reading.naming import parse_key
from lorabench.adapters.reading.patterns import Regex
from lorabench.adapters.reading.scaling import Stated, find_scale
from lorabench.adapters.writing.refusals import changed_base
from lorabench.adapters.writing.tensors import alpha_of
from lorabench.errors import LorabenchError

__all__ = ["configuration", "pattern_key", "stated_options"]

_OF_THE_BASE = ("auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "revision", "task_type")
"""What an adapter of another kind than LoRA still says of its base model."""

_CHOICE = ("layers_to_transform", "layers_pattern", "target_modules")
_HEADED = ("QUESTION_ANS", "SEQ_CLS", "TOKEN_CLS")
"""Tasks for which PEFT itself looks for a saved head."""


def configuration(where: Path, adapter: Adapter, modules: Mapping[str, LoraModule]) -> dict[str, Any]:
    """The configuration of a PEFT folder.

    Entries of the adapter's own configuration stay as they are, also those that nobody has heard of. Ranks and α stay
    where they are those of the modules, and are written anew where they are not (as the commonest, with patterns for
    the others, α so that α/r is the scale, hence no `use_rslora`), and so are target modules. What the file has no
    tensors for any more (a head, biases, magnitudes) is no longer claimed.

    Args:
        where: that is written, for messages.
        adapter: what it was read as, with its configuration and extras.
        modules: name in the folder -> what is written.

    Raises:
        LorabenchError: ranks or scales changed, and the configuration says that the base weights depend on them.
    """
    given = stated_options(adapter)
    config: dict[str, Any] = {
        "peft_type": "LORA", "base_model_name_or_path": None, "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "lora_dropout": 0.0, "modules_to_save": None, "task_type": None, "use_rslora": False,
    } | given  # fmt: skip
    if not _describes(where, given, modules):
        start = changed_base(given)
        if start:
            raise LorabenchError(
                f"{where}: init_lora_weights = {start!r} in adapter_config.json: PEFT changes the base weights by the "
                "ranks and scales of this configuration, and the adapter has others now. Save it with PEFT's "
                "path_initial_model_for_weight_conversion as an ordinary LoRA first, or keep its ranks."
            )
        config |= _ranks(modules)
        odd = any(module.rank % 2 for module in modules.values())
        if odd and str(given.get("init_lora_weights")).lower() == "orthogonal":  # PEFT makes it of even ranks alone
            del config["init_lora_weights"]
    if not _names_all(given.get("target_modules"), modules):
        for entry in _CHOICE:
            config.pop(entry, None)
        # In a list PEFT would take each for the end of a name, so that `conv_in` met `refiner.conv_in` too.
        config["target_modules"] = f"^(?:{'|'.join(re.escape(name) for name in modules)})$"
    return config | _no_longer(config, adapter)


def stated_options(adapter: Adapter) -> dict[str, Any]:
    """The entries of an adapter's configuration that hold for what is written of it.

    All of PEFT's for LoRA; of other kinds and layouts what they say of the base model, which MLX calls `model`.
    """
    config = dict(adapter.config)
    of_lora = str(config.get("peft_type", "LORA")) == "LORA"
    if of_lora and set(adapter.schemes) <= {"peft", "loralib"}:
        return {key: value for key, value in config.items() if key != "peft_type"}
    kept = {key: config[key] for key in _OF_THE_BASE if key in config}
    model = config.get("model")
    return kept | ({"base_model_name_or_path": model} if "mlx" in adapter.schemes and isinstance(model, str) else {})


def _describes(where: Path, config: Mapping[str, Any], modules: Mapping[str, LoraModule]) -> bool:
    """Whether a configuration's ranks and α are those of all modules."""
    if "r" not in config and "lora_alpha" not in config:
        return False
    try:
        for name, module in modules.items():
            stated = Stated(where, name, "peft", module.rank, config=config)
            if stated.asked_rank() != module.rank or find_scale(stated).value != module.scale:
                return False
    except LorabenchError:  # a pattern or a number that nobody can use
        return False
    return True


def _ranks(modules: Mapping[str, LoraModule]) -> dict[str, Any]:
    ranks = {name: module.rank for name, module in modules.items()}
    alphas = {name: alpha_of(module) for name, module in modules.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {pattern_key(name): value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {pattern_key(name): value for name, value in alphas.items() if value != alpha},
        "use_rslora": False,
    }


def pattern_key(module: str) -> str:
    r"""PEFT's pattern that fits the module of this name alone.

    PEFT takes a bare name for the end of every name that it fits: "proj_out" is "blocks.0.proj_out" too.

    >>> pattern_key("blocks.0.proj_out")
    '^blocks\\.0\\.proj_out'
    """
    return f"^{re.escape(module)}"


def _names_all(targets: object, modules: Iterable[str]) -> bool:
    """Whether `target_modules` names every module: as the end of a name, or as an expression for whole names."""
    if targets == "all-linear":
        return True
    if isinstance(targets, list):
        ends = tuple(str(target) for target in targets)
        return all(any(name == end or name.endswith(f".{end}") for end in ends) for name in modules)
    if not isinstance(targets, str):
        return False
    try:
        pattern = Regex(targets)
        return all(pattern.matches(name) for name in modules)
    except ValueError:  # of another kind, or too long: the names are written out
        return False


def _no_longer(config: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    """Entries that claim tensors which are not written."""
    kinds = {parse_key(key).part for key in adapter.extras}
    changed: dict[str, Any] = {}
    if "full_weight" not in kinds and config.get("modules_to_save"):
        changed["modules_to_save"] = None
    if "full_weight" not in kinds and config.get("task_type") in _HEADED:
        changed["task_type"] = None
    if "bias" not in kinds:
        changed |= {"bias": "none"} | ({"lora_bias": False} if config.get("lora_bias") else {})
    if "token_delta" not in kinds and config.get("trainable_token_indices"):
        changed["trainable_token_indices"] = None
    changed |= {entry: None for entry in ("target_parameters",) if config.get(entry)}
    return changed | ({"use_dora": False} if config.get("use_dora") else {})
