"""Read one adapter file safely, whatever tool wrote it, and write one so that others can read it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.reading import variants
from lorabench.adapters.reading.container import read_container
from lorabench.adapters.reading.experts import set_experts_aside
from lorabench.adapters.reading.header import find_adapter_file, read_json
from lorabench.adapters.reading.kinds import scale_of
from lorabench.adapters.reading.scaling import saved_config
from lorabench.adapters.reading.shapes import Fit, fit, refuse_together
from lorabench.adapters.reading.sorting import ModuleKeys, sort_keys
from lorabench.adapters.reading.switching import switches
from lorabench.adapters.writing.saving import ORDER_KEY, save
from lorabench.errors import LorabenchError

__all__ = ["Adapter", "LoraModule", "load", "save"]


def load(path: Path | str, *, strict: bool = False) -> Adapter:
    """The low-rank updates in an adapter file, or in a PEFT, diffusers or MLX folder.

    Factors come as float32 [r, d_in] and [d_out, r]; ΔW = scale · up @ down. Safetensors are opened after a
    check of their header, pickles with `weights_only=True` alone.

    Args:
        path: a .safetensors, .bin, .pt or .pth file, or a folder that holds one adapter.
        strict: whether a tensor that is no part of a ΔW is an error; else it is listed in `Adapter.unsupported`.

    Raises:
        LorabenchError: the file cannot be used; the message names it, what is wrong, and what to do.
    """
    file = find_adapter_file(Path(path))
    container = read_container(file)
    keys = sort_keys(file, container.tensors, container.leftovers)
    beside = read_json(file.parent / "adapter_config.json")
    inside = saved_config(file, container.metadata)
    set_experts_aside(keys, inside or beside)
    if not keys.modules:
        _refuse_nothing(file, keys.unsupported)
    if strict and keys.unsupported:
        raise LorabenchError(
            f"{file}: not all of it can be analysed. {_listed(keys.unsupported)}. Read it without strict to go on "
            "without these."
        )
    fits = {name: _fit(file, name, one, container.tensors) for name, one in keys.modules.items()}
    refuse_together(file, fits)
    modules = {
        name: _module(file, name, one, fits[name], container.tensors, inside, beside)
        for name, one in keys.modules.items()
    }
    return Adapter(
        path=file,
        schemes=keys.schemes,
        modules={name: modules[name] for name in _order(modules, container.metadata)},
        metadata=container.metadata,
        config=beside,
        unsupported={kind: tuple(found) for kind, found in sorted(keys.unsupported.items())},
    )


def _fit(file: Path, name: str, one: ModuleKeys, tensors: Mapping[str, Tensor]) -> Fit:
    shapes = {part: tuple(tensors[key].shape) for part, key in one.parts.items()}
    return fit(file, name, one, shapes, variants.MOST_ENTRIES)


def _module(
    file: Path,
    name: str,
    keys: ModuleKeys,
    found: Fit,
    tensors: Mapping[str, Tensor],
    inside: Mapping[str, Any],
    beside: Mapping[str, Any],
) -> LoraModule:
    parts, merged = switches(file, name, found, inside or beside)
    factors = variants.factors_of(file, name, keys, tensors, found, parts)
    stored = tensors[keys.parts["alpha"]] if "alpha" in keys.parts else None
    alpha = float(stored.flatten()[0]) if stored is not None and stored.numel() else None
    scale = scale_of(file, name, keys, factors.rank, alpha, inside, beside).scale
    dora = ("DoRA: the magnitude vector is left out, ΔW is its low-rank part alone",)
    first = next(key for part, key in keys.parts.items() if part != "alpha")
    return LoraModule(
        down=factors.down,
        up=factors.up,
        scale=scale.value,
        alpha=scale.alpha,
        assumed=factors.notes + merged + scale.assumed + (dora if keys.magnitude else ()),
        dtype=tensors[keys.parts.get("down", first)].dtype,
        embedding=keys.scheme == "peft-embedding",
        kernel=factors.kernel,
        kind=keys.kind,
    )


def _order(modules: Mapping[str, LoraModule], metadata: Mapping[str, str]) -> list[str]:
    """The writer's order where lorabench wrote the file, otherwise block 2 before block 10."""
    written = metadata.get(ORDER_KEY, "").split("\n")
    if set(written) == set(modules) and len(written) == len(modules):
        return written
    return sorted(modules, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    # A number by its length and then its digits: it may have more of them than Python makes a number of.
    parts = [part.lstrip("0") if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    return [(len(part) if i % 2 else -1, part) for i, part in enumerate(parts)]


def _refuse_nothing(file: Path, unsupported: Mapping[str, list[str]]) -> None:
    if not unsupported:
        raise LorabenchError(f"{file}: the file holds no tensors at all. Export the adapter again.")
    raise LorabenchError(
        f"{file}: no LoRA pair (down and up) in it, only what cannot be analysed here. {_listed(unsupported)}. "
        "Give a LoRA adapter in diffusers, PEFT, kohya, loralib, MLX, SAM or cloneofsimo names."
    )


def _listed(unsupported: Mapping[str, list[str]]) -> str:
    return "; ".join(
        f"{kind}: {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for kind, keys in sorted(unsupported.items())
    )
