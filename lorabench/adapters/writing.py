"""Write an adapter in the layout of diffusers, PEFT or kohya, whole or not at all."""

import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.kohya import to_kohya
from lorabench.adapters.naming import parse_key
from lorabench.errors import LorabenchError, explain_disk_errors

__all__ = ["LAYOUTS", "ORDER_KEY", "save"]

LAYOUTS = ("diffusers", "peft", "kohya")
ORDER_KEY = "lorabench_modules"
"""Metadata entry with the names of the modules in their order, one a line."""

_PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
_KEPT = ("base_model_name_or_path", "fan_in_fan_out", "task_type", "revision")
_REMEDY = "Free some space or choose another place; nothing half-written was left."


def save(path: Path | str, adapter: Adapter | Mapping[str, LoraModule], layout: str) -> Path:
    """Write an adapter so that reading it gives the same modules, factors and ΔW.

    - "diffusers": one file of `<module>.lora.down.weight` and `.up.weight`. It carries no α, so a scale that
      is not 1 is multiplied into up.
    - "peft": a folder of adapter_model.safetensors and adapter_config.json, with `rank_pattern` and
      `alpha_pattern` where modules differ.
    - "kohya": one file of `lora_unet_….lora_down.weight`, `.lora_up.weight` and `.alpha`. A module that
      kohya's underscores would not bring back (`h.0.c_attn`, no such component) keeps its dots.

    Args:
        path: a file that ends in .safetensors; for "peft" a folder that is new, empty, or such an adapter.
        adapter: an adapter, or its modules by canonical name.
        layout: "diffusers", "peft" or "kohya".

    Returns:
        `path`.

    Raises:
        LorabenchError: the path does not fit the layout, a name cannot be written, or the disk is full.
    """
    path = Path(path)
    modules = adapter.modules if isinstance(adapter, Adapter) else adapter
    if layout not in LAYOUTS:
        raise LorabenchError(f"layout={layout!r}: allowed are {', '.join(LAYOUTS)}.")
    if not modules:
        raise LorabenchError(f"{path}: an adapter without modules cannot be written. Name at least one module.")
    metadata, config = _kept(adapter) if isinstance(adapter, Adapter) else ({}, {})
    tensors = {"diffusers": _diffusers, "peft": _peft, "kohya": _kohya}[layout](modules)
    _check_names(path, modules, tensors)
    # Views of one stack share memory, which the format does not allow.
    copies = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()
    }
    data = serialise(copies, metadata | {"format": "pt", ORDER_KEY: "\n".join(modules)})
    with explain_disk_errors(path, _REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        if layout == "peft":
            text = json.dumps(_peft_config(modules) | config, indent=2, sort_keys=True)
            _write_folder(path, {"adapter_config.json": text.encode(), "adapter_model.safetensors": data})
        else:
            _write_file(path, data)
    return path


def _kept(adapter: Adapter) -> tuple[dict[str, str], dict[str, Any]]:
    """Metadata and PEFT options that stay true in another layout: no hashes and scales of the old file."""
    metadata = {
        key: value
        for key, value in adapter.metadata.items()
        if key != "lora_adapter_metadata" and not key.startswith("sshs_")
    }
    return metadata, {key: adapter.config[key] for key in _KEPT if key in adapter.config}


def _diffusers(modules: Mapping[str, LoraModule]) -> dict[str, Tensor]:
    tensors = {}
    for name, module in modules.items():
        up = module.up if module.scale == 1.0 else module.up * module.scale
        tensors[f"{name}.lora.down.weight"] = module.down
        tensors[f"{name}.lora.up.weight"] = up
    return tensors


def _peft(modules: Mapping[str, LoraModule]) -> dict[str, Tensor]:
    tensors = {}
    for name, module in modules.items():
        middle, end = ("lora_embedding_", "") if module.embedding else ("lora_", ".weight")
        tensors[f"base_model.model.{name}.{middle}A{end}"] = module.down
        tensors[f"base_model.model.{name}.{middle}B{end}"] = module.up
    return tensors


def _kohya(modules: Mapping[str, LoraModule]) -> dict[str, Tensor]:
    several = any(name.startswith("text_encoder_2.") for name in modules)
    tensors = {}
    for name, module in modules.items():
        stem = to_kohya(name, several_text_encoders=several) or name
        tensors[f"{stem}.lora_down.weight"] = module.down
        tensors[f"{stem}.lora_up.weight"] = module.up
        alpha = _alpha(module)
        exact = float(torch.tensor(alpha, dtype=torch.float32)) == alpha
        tensors[f"{stem}.alpha"] = torch.tensor(alpha, dtype=torch.float32 if exact else torch.float64)
    return tensors


def _alpha(module: LoraModule) -> float:
    """The α whose quotient by r is the scale, to the last bit where such a number exists."""
    near = module.scale * module.rank
    candidates = (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    known = () if module.alpha is None else (module.alpha,)
    return next((alpha for alpha in (*known, *candidates) if alpha / module.rank == module.scale), near)


def _peft_config(modules: Mapping[str, LoraModule]) -> dict[str, Any]:
    ranks = {name: module.rank for name, module in modules.items()}
    alphas = {name: _alpha(module) for name, module in modules.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    # Anchored and escaped, since PEFT takes a bare name for the end of every name that it fits.
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{re.escape(name)}": value for name, value in alphas.items() if value != alpha},
        "target_modules": list(modules),
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "task_type": None,
        "use_rslora": False,
    }


def _check_names(path: Path, modules: Mapping[str, LoraModule], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a name that a reader would take for another."""
    parsed = {(found.module, found.part) for found in map(parse_key, tensors)}
    lost = [name for name in modules if not {(name, "down"), (name, "up")} <= parsed or "\n" in name]
    if lost:
        raise LorabenchError(
            f"{path}: the module name {lost[0]!r} cannot be written in this layout, reading it would give "
            "another "
            "name. Rename the module, or choose another layout."
        )


def _write_file(path: Path, data: bytes) -> None:
    if path.suffix != ".safetensors" or path.is_dir():
        raise LorabenchError(f"{path}: this layout is one file whose name ends in .safetensors. Name such a file.")
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # mkstemp makes a private file; an adapter is readable like any other file of its owner.
        Path(partial).chmod(0o666 & ~_umask())
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    if path.is_file() or (path.is_dir() and any(entry.name not in _PEFT_FILES for entry in path.iterdir())):
        raise LorabenchError(
            f"{path}: a PEFT adapter is written to a folder of its own, and something else is there. "
            "Name a new folder, or take away what it holds."
        )
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        partial.chmod(0o777 & ~_umask())
        for name, data in files.items():
            (partial / name).write_bytes(data)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
