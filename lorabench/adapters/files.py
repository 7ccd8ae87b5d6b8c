"""Read one adapter file safely, whatever tool wrote it, and write one so that others can read it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.container import Container, find_adapter_file, read_container, read_json
from lorabench.adapters.naming import FACTORS, parse_key
from lorabench.adapters.pairing import pair
from lorabench.adapters.scaling import find_scale, saved_config
from lorabench.adapters.writing import ORDER_KEY, write_adapter
from lorabench.errors import LorabenchError

__all__ = ["Adapter", "LoraModule", "read_adapter", "write_adapter"]


@dataclass
class _Sorted:
    """Keys by module and part, the scheme of each module, and what cannot be analysed by kind."""

    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    schemes: dict[str, str] = field(default_factory=dict)
    unsupported: dict[str, list[str]] = field(default_factory=dict)
    magnitudes: set[str] = field(default_factory=set)


def read_adapter(path: Path | str) -> Adapter:
    """The low-rank updates in an adapter file, or in a PEFT, diffusers or MLX folder.

    Factors come as float32 [r, d_in] and [d_out, r]; ΔW = scale · up @ down. Safetensors are opened after a
    check of their header, pickles with `weights_only=True` alone.

    Args:
        path: a .safetensors, .bin, .pt or .pth file, or a folder that holds one adapter.

    Raises:
        LorabenchError: the file cannot be used; the message names it, what is wrong, and what to do.
    """
    file = find_adapter_file(Path(path))
    container = read_container(file)
    keys = _sort_keys(file, container)
    if not keys.modules:
        _refuse_nothing(file, keys.unsupported)
    beside = read_json(file.parent / "adapter_config.json")
    inside = saved_config(file, container.metadata)
    modules = {name: _module(file, name, keys, container.tensors, inside, beside) for name in keys.modules}
    return Adapter(
        path=file,
        schemes=tuple(sorted({scheme.removesuffix("-embedding") for scheme in keys.schemes.values()})),
        modules={name: modules[name] for name in _order(modules, container.metadata)},
        metadata=container.metadata,
        config=beside,
        unsupported={kind: tuple(found) for kind, found in sorted(keys.unsupported.items())},
    )


def _sort_keys(file: Path, container: Container) -> _Sorted:
    keys = _Sorted()
    kinds: dict[str, str] = {}
    for key in container.tensors:
        parsed = parse_key(key)
        if parsed.part not in FACTORS:
            keys.unsupported.setdefault(parsed.part, []).append(key)
            kinds.setdefault(parsed.module, parsed.part)
            continue
        parts = keys.modules.setdefault(parsed.module, {})
        if parsed.part in parts:
            raise LorabenchError(
                f"{file}: {parts[parsed.part]} and {key} are both the {parsed.part} of module "
                f"{parsed.module}. "
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
    if container.leftovers:
        keys.unsupported.setdefault("other", []).extend(container.leftovers)
    return keys


def _module(
    file: Path,
    name: str,
    keys: _Sorted,
    tensors: Mapping[str, Tensor],
    inside: Mapping[str, Any],
    beside: Mapping[str, Any],
) -> LoraModule:
    parts = keys.modules[name]
    scheme = keys.schemes.get(name, "")
    factors = pair(file, name, scheme, parts, tensors)
    stored = tensors[parts["alpha"]] if "alpha" in parts else None
    alpha = float(stored.flatten()[0]) if stored is not None and stored.numel() else None
    config = inside or (beside if scheme.startswith(("peft", "mlx")) else {})
    scale = find_scale(file, name, scheme, factors.rank, alpha, config)
    dora = ("DoRA: the magnitude vector is left out, ΔW is its low-rank part alone",)
    return LoraModule(
        down=factors.down,
        up=factors.up,
        scale=scale.value,
        alpha=scale.alpha,
        assumed=factors.notes + scale.assumed + (dora if name in keys.magnitudes else ()),
        dtype=tensors[parts["down"]].dtype,
        embedding=scheme == "peft-embedding",
    )


def _order(modules: Mapping[str, LoraModule], metadata: Mapping[str, str]) -> list[str]:
    """The writer's order where lorabench wrote the file, otherwise block 2 before block 10."""
    written = metadata.get(ORDER_KEY, "").split("\n")
    if set(written) == set(modules) and len(written) == len(modules):
        return written
    return sorted(modules, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _refuse_nothing(file: Path, unsupported: Mapping[str, list[str]]) -> None:
    if not unsupported:
        raise LorabenchError(f"{file}: the file holds no tensors at all. Export the adapter again.")
    kinds = "; ".join(
        f"{kind}: {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for kind, keys in sorted(unsupported.items())
    )
    raise LorabenchError(
        f"{file}: no LoRA pair (down and up) in it, only what cannot be analysed here. {kinds}. "
        "Give a LoRA adapter in diffusers, PEFT, kohya, loralib, MLX, SAM or cloneofsimo names."
    )
