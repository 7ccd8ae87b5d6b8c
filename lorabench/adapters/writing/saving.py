"""Write an adapter in a layout that others read, whole or not at all."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.layouts import WrittenLayout, written_layout, written_layouts
from lorabench.adapters.names.identity import identity, split_part
from lorabench.adapters.reading.beside import CONFIG
from lorabench.adapters.reading.hashes import HASH_KEYS, sshs_hashes_of
from lorabench.adapters.reading.header import ADAPTER_SUFFIXES
from lorabench.adapters.reading.naming import parse_key
from lorabench.adapters.reading.sorting import ORDER_KEY
from lorabench.adapters.writing.configuration import configuration
from lorabench.adapters.writing.kept import kept_metadata
from lorabench.adapters.writing.nearest import nearest_layout
from lorabench.adapters.writing.refusals import refuse_embeddings, refuse_magnitudes, refuse_options
from lorabench.adapters.writing.tensors import scaled_biases, tensors_in
from lorabench.errors import LorabenchError
from lorabench.storage import write_chunks, write_file, write_peft_folder
from lorabench.text import some

__all__ = ["LAYOUTS", "carries_extras", "layout_of", "refuse_extras", "save", "stored_type"]

LAYOUTS = tuple(written_layouts())
"""The names of the layouts that `save` writes."""

_MODELSPEC = "modelspec.hash_sha256"
_NOTHING: Mapping[str, str] = MappingProxyType({})
_PICKLED = (".bin", ".pt", ".pth")
_PEFT = "base_model.model."


def save(
    path: Path | str,
    adapter: Adapter | Mapping[str, LoraModule],
    layout: str,
    *,
    dtype: torch.dtype | Literal["stored"] | None = None,
    metadata: Mapping[str, str] = _NOTHING,
) -> Path:
    """Write an adapter so that reading it gives the same modules, factors and ΔW.

    - "peft": a folder of adapter_model.safetensors and adapter_config.json, with `rank_pattern` and
      `alpha_pattern` where modules differ. Heads, saved modules, biases and token deltas that were read
      (`Adapter.extras`) are written whole, and every entry of the configuration that was read.
    - "diffusers": one file of `<module>.lora.down.weight` and `.up.weight`. It carries no α, so a scale that
      is not 1 is multiplied into up.
    - "diffusers-peft", "comfyui": one file of `<module>.lora_A.weight` and `.lora_B.weight`, likewise.
    - "kohya": one file of `lora_unet_….lora_down.weight`, `.lora_up.weight` and `.alpha`. A module without a part of
      a pipeline (`h.0.c_attn`) keeps its dots.

    Args:
        path: a file that ends in .safetensors, or in .bin or .pt, which become a plain state dict of torch.save; for
            "peft" a folder that is new, empty, or such an adapter.
        adapter: an adapter, or its modules by canonical name.
        layout: one of `layouts.written_layouts`.
        dtype: of the factors; None is float32, "stored" every module's own `dtype` (eight-bit ones become
            bfloat16, which holds them exactly).
        metadata: entries that are added to those of the adapter, or replace them. Of the whole, kohya's ranks and
            alphas are made right, and `sshs_*` hashes computed where the layout is kohya's or some were there.

    Returns:
        `path`.

    Raises:
        LorabenchError: the path does not fit the layout, a name or an option cannot be written, values do not fit the
            type, or the disk is full.

    Example:
        >>> import tempfile
        >>> from lorabench.adapters import load
        >>> module = LoraModule(torch.eye(2, 5), torch.eye(4, 2), scale=0.5)
        >>> file = save(Path(tempfile.mkdtemp()) / "a.safetensors", {"unet.mid_block.to_q": module}, "kohya")
        >>> list(load(file).modules), load(file).modules["unet.mid_block.to_q"].scale
        (['unet.mid_block.to_q'], 0.5)
    """
    path = Path(path)
    form = written_layout(layout)
    if not isinstance(adapter, Adapter):
        adapter = Adapter(path, (), adapter)
    modules = adapter.modules
    if not modules:
        raise LorabenchError(f"{path}: an adapter without modules cannot be written. Name at least one module.")
    if form.folder and path.suffix in ADAPTER_SUFFIXES:
        raise LorabenchError(
            f"{path}: a PEFT adapter is a folder, and this is a file's name. Name a folder, or choose another layout."
        )
    refuse_embeddings(path, modules, form)
    refuse_magnitudes(adapter, drop=False)
    refuse_options(adapter, form)
    refuse_extras(adapter, form)
    given = {**adapter.metadata, **metadata}
    types = {name: stored_type(module, torch.float32 if dtype is None else dtype) for name, module in modules.items()}
    names = form.spell({name: split_part(name)[0] for name in modules}, given)
    tensors = {
        key: _cast(path, name, key, tensor, kind)
        for key, (name, tensor, kind) in tensors_in(form, modules, types, names).items()
    }
    _check_names(path, modules, form, names)
    tensors |= _extras(adapter, form)
    kept = kept_metadata(given, modules, form) | {"format": "pt", ORDER_KEY: "\n".join(modules)}
    if path.suffix in _PICKLED:
        write_chunks(path, (_pickled(tensors),))
        return path
    data = serialise(tensors, kept)
    hashes = _hashes(data, given, form)
    chunks = _with_metadata(data, hashes) if hashes else (data,)
    if form.folder:
        text = json.dumps(configuration(path, adapter, modules), indent=2, sort_keys=True)
        write_peft_folder(path, {CONFIG: (text.encode(),), "adapter_model.safetensors": chunks})
    else:
        write_file(path, chunks)
    return path


def stored_type(module: LoraModule, dtype: torch.dtype | Literal["stored"] = "stored") -> torch.dtype:
    """The type that a module's factors are written in: `dtype`, or its own, eight-bit ones as bfloat16."""
    if dtype != "stored":
        return dtype
    return module.dtype if module.dtype.itemsize > 1 else torch.bfloat16


def layout_of(adapter: Adapter) -> str:
    """The layout that is nearest to the one that the adapter was read from.

    Example:
        >>> layout_of(Adapter(Path("a.safetensors"), ("kohya",), {}))
        'kohya'
    """
    return nearest_layout(adapter.schemes, adapter.modules, adapter.config, adapter.path)


def carries_extras(adapter: Adapter, layout: str) -> bool:
    """Whether what no rank changes is written whole: where the file's layout is the adapter's own."""
    return layout == layout_of(adapter) and set(adapter.schemes) <= written_layout(layout).carries


def refuse_extras(adapter: Adapter, layout: WrittenLayout) -> None:
    """Whole tensors that a layout has no place for.

    Raises:
        LorabenchError: the adapter holds some.
    """
    if adapter.extras and not carries_extras(adapter, layout.name):
        nearest = layout_of(adapter)
        keep = f"Keep its own layout, {nearest}, or say" if carries_extras(adapter, nearest) else "Say"
        raise LorabenchError(
            f"{adapter.path}: the {layout.name} layout has no place for {len(adapter.extras)} tensors that are no pair "
            f"({some(adapter.extras)}). {keep} --drop-unsupported (drop_unsupported=True) to leave these out."
        )


def _extras(adapter: Adapter, layout: WrittenLayout) -> dict[str, Tensor]:
    if not carries_extras(adapter, layout.name):
        return {}
    stem = _PEFT if layout.folder else ""
    extras = scaled_biases(adapter) if layout.alpha == "folded" else adapter.extras
    return {f"{stem}{key}": tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in extras.items()}


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


def _pickled(tensors: Mapping[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    return buffer.getvalue()


def _hashes(data: bytes, given: Mapping[str, str], layout: WrittenLayout) -> dict[str, str]:
    """Kohya's hashes for its layout, and every kind of hash that the old file had."""
    old = {key for key in HASH_KEYS if key in given}
    if not layout.hashed and not old:
        return {}
    hashes = sshs_hashes_of(data)
    # ModelSpec's is the same sum over the bytes after the header.
    return hashes | ({_MODELSPEC: f"0x{hashes['sshs_model_hash']}"} if _MODELSPEC in old else {})


def _with_metadata(data: bytes, entries: Mapping[str, str]) -> tuple[bytes, memoryview]:
    """A serialised file with more metadata, its tensors not copied again."""
    body = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:body])
    header["__metadata__"] |= entries
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, memoryview(data)[body:]


def _check_names(path: Path, modules: Iterable[str], layout: WrittenLayout, names: Mapping[str, str]) -> None:
    """Refuse a name that a reader would take for another."""
    for name in modules:
        keys = layout.keys(name, embedding=False, names=names)
        read = [parse_key(key) for key in (keys.down, keys.up)]
        same = all(identity(parsed.module) == identity(name) for parsed in read)
        if not same or [parsed.part for parsed in read] != ["down", "up"] or "\n" in name:
            raise LorabenchError(
                f"{path}: the module name {name!r} cannot be written in this layout, reading it would give "
                "another name. Rename the module, or choose another layout."
            )
