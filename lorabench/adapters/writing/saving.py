"""Write an adapter in the layout of diffusers, PEFT or kohya, whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.metadata.hashes import HASH_KEYS, sshs_hashes_of
from lorabench.adapters.reading.header import ADAPTER_SUFFIXES
from lorabench.adapters.reading.naming import component, parse_key
from lorabench.adapters.writing.kept import kept_config, kept_metadata
from lorabench.adapters.writing.layouts import LAYOUTS, peft_config, tensors_in
from lorabench.adapters.writing.refusals import refuse_embeddings
from lorabench.errors import LorabenchError
from lorabench.storage import write_file, write_peft_folder

__all__ = ["LAYOUTS", "ORDER_KEY", "layout_of", "save", "stored_type"]

ORDER_KEY = "lorabench_modules"
"""Metadata entry with the names of the modules in their order, one a line."""

_MODELSPEC = "modelspec.hash_sha256"
_NOTHING: Mapping[str, str] = MappingProxyType({})


def save(
    path: Path | str,
    adapter: Adapter | Mapping[str, LoraModule],
    layout: str,
    *,
    dtype: torch.dtype | Literal["stored"] | None = None,
    metadata: Mapping[str, str] = _NOTHING,
) -> Path:
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
        dtype: of the factors; None is float32, "stored" every module's own `dtype` (eight-bit ones become
            bfloat16, which holds them exactly).
        metadata: entries that are added to those of the adapter, or replace them. Of the whole, kohya's ranks and
            alphas are made right, and `sshs_*` hashes computed where the layout is kohya's or some were there.

    Returns:
        `path`.

    Raises:
        LorabenchError: the path does not fit the layout, a name cannot be written, values do not fit the
            type, or the disk is full.
    """
    path = Path(path)
    modules = adapter.modules if isinstance(adapter, Adapter) else adapter
    if layout not in LAYOUTS:
        raise LorabenchError(f"layout={layout!r}: allowed are {', '.join(LAYOUTS)}.")
    if not modules:
        raise LorabenchError(f"{path}: an adapter without modules cannot be written. Name at least one module.")
    if layout == "peft" and path.suffix in ADAPTER_SUFFIXES:
        raise LorabenchError(
            f"{path}: a PEFT adapter is a folder, and this is a file's name. Name a folder, or choose another layout."
        )
    refuse_embeddings(path, modules, layout)
    old, config = (adapter.metadata, kept_config(adapter)) if isinstance(adapter, Adapter) else ({}, {})
    given = {**old, **metadata}
    types = {name: stored_type(module, torch.float32 if dtype is None else dtype) for name, module in modules.items()}
    tensors = {
        key: _cast(path, name, key, tensor, kind)
        for key, (name, tensor, kind) in tensors_in(layout, modules, types, given).items()
    }
    _check_names(path, modules, tensors)
    said = kept_metadata(given, modules, layout) | {"format": "pt", ORDER_KEY: "\n".join(modules)}
    data = serialise(tensors, said)
    hashes = _hashes(data, given, layout)
    chunks = _with_metadata(data, hashes) if hashes else (data,)
    if layout == "peft":
        text = json.dumps(peft_config(modules) | config, indent=2, sort_keys=True)
        write_peft_folder(path, {"adapter_config.json": (text.encode(),), "adapter_model.safetensors": chunks})
    else:
        write_file(path, chunks)
    return path


def stored_type(module: LoraModule, dtype: torch.dtype | Literal["stored"] = "stored") -> torch.dtype:
    """The type that a module's factors are written in: `dtype`, or its own, eight-bit ones as bfloat16."""
    if dtype != "stored":
        return dtype
    return module.dtype if module.dtype.itemsize > 1 else torch.bfloat16


def layout_of(adapter: Adapter) -> str:
    """The layout of `LAYOUTS` that is nearest to the one that the adapter was read from."""
    schemes = set(adapter.schemes)
    if schemes & {"kohya", "lycoris"}:
        return "kohya"
    if schemes & {"diffusers", "diffusers-old", "xlabs", "cloneofsimo"}:
        return "diffusers"
    # `pipe.save_lora_weights` writes PEFT's lora_A and lora_B under the names of a pipeline's models; `transformer.h`
    # is no such model but a language model's own name.
    of_a_pipeline = all(
        component(name) != "model" and not name.startswith("transformer.h.") for name in adapter.modules
    )
    of_peft = bool(adapter.config) or adapter.path.stem == "adapter_model"
    return "diffusers" if of_a_pipeline and not of_peft else "peft"


def _cast(path: Path, name: str, key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of its own: views of one stack share memory, which the format does not allow."""
    cast = tensor.detach().to("cpu", dtype, copy=True).contiguous()
    largest = f"{key} of module {name} in {dtype}: its largest value is {float(tensor.abs().max()):.3g}"
    if not bool(torch.isfinite(cast).all()):
        raise LorabenchError(
            f"{path}: cannot write {largest}, {torch.finfo(dtype).max:.5g} is allowed. Choose bfloat16 or float32."
        )
    if not bool(cast.any()) and bool(tensor.any()):
        raise LorabenchError(f"{path}: cannot write {largest}, it would be all zero. Choose bfloat16 or float32.")
    return cast


def _hashes(data: bytes, given: Mapping[str, str], layout: str) -> dict[str, str]:
    """Kohya's hashes for its layout, and every kind of hash that the old file had."""
    old = {key for key in HASH_KEYS if key in given}
    if layout != "kohya" and not old:
        return {}
    found = sshs_hashes_of(data)
    # ModelSpec's is the same sum over the bytes after the header.
    return found | ({_MODELSPEC: f"0x{found['sshs_model_hash']}"} if _MODELSPEC in old else {})


def _with_metadata(data: bytes, entries: Mapping[str, str]) -> tuple[bytes, memoryview]:
    """A serialised file with more metadata, its tensors not copied again."""
    body = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:body])
    header["__metadata__"] |= entries
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, memoryview(data)[body:]


def _check_names(path: Path, modules: Mapping[str, LoraModule], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a name that a reader would take for another."""
    parsed = {(found.module, found.part) for found in map(parse_key, tensors)}
    lost = [name for name in modules if not {(name, "down"), (name, "up")} <= parsed or "\n" in name]
    if lost:
        raise LorabenchError(
            f"{path}: the module name {lost[0]!r} cannot be written in this layout, reading it would give "
            "another name. Rename the module, or choose another layout."
        )
