"""Read one adapter file safely, whatever tool wrote it."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.kinds import kinds
from lorabench.adapters.kinds.base import BESIDE, Stored
from lorabench.adapters.kinds.dora import MAGNITUDE_LEFT_OUT
from lorabench.adapters.layouts import layout_called
from lorabench.adapters.names.identity import unwrap
from lorabench.adapters.reading import limits
from lorabench.adapters.reading.container import Container, finite, read_container
from lorabench.adapters.reading.header import find_adapter_file
from lorabench.adapters.reading.naming import KEPT
from lorabench.adapters.reading.sorting import ORDER_KEY
from lorabench.adapters.reading.table import ModuleRow, Table, plan
from lorabench.errors import LorabenchError
from lorabench.progress import track
from lorabench.text import some

__all__ = ["load"]


def load(path: Path | str, *, strict: bool = False) -> Adapter:
    """The low-rank updates in an adapter file, or in a PEFT, diffusers or MLX folder.

    Factors come as float32 [r, d_in] and [d_out, r]; ΔW = scale · up @ down. Safetensors are opened after a
    check of their header, pickles with `weights_only=True` alone.

    Args:
        path: a .safetensors, .npz, .bin, .pt or .pth file, or a folder that holds one adapter.
        strict: whether a tensor that is no part of a ΔW is an error; else it is listed in `Adapter.unsupported`.

    Raises:
        LorabenchError: the file cannot be used; the message names it, what is wrong, and what to do.

    Example:
        >>> import tempfile, torch
        >>> from lorabench.adapters import LoraModule, save
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> _ = save(file, {"unet.mid_block.to_q": LoraModule(torch.eye(2, 5), torch.eye(4, 2))}, "diffusers-peft")
        >>> adapter = load(file)
        >>> adapter.modules["unet.mid_block.to_q"].down.shape, adapter.schemes
        (torch.Size([2, 5]), ('peft',))
    """
    file = find_adapter_file(Path(path))
    container = read_container(file)
    table = plan(file, container.header, None if container.header else container)
    if table.problems:
        raise LorabenchError(f"{file}: {table.problems[0]}")
    if not table.rows:
        _refuse_nothing(table)
    if strict and table.unsupported:
        raise LorabenchError(
            f"{file}: not all of it can be analysed. {_listed(table.unsupported)}. Read it without strict to go on "
            "without these."
        )
    _refuse_together(table)
    plain = all(kinds()[row.form].pair for row in table.rows)  # which takes no time, however many they are
    rows = table.rows if plain else track(table.rows, f"Reading {file.name}")
    modules = {row.module: _module(file, row, container.tensors) for row in rows}
    return Adapter(
        path=file,
        schemes=table.schemes,
        modules={name: modules[name] for name in _order(modules, container.metadata)},
        metadata=container.metadata,
        config=table.config,
        unsupported=table.unsupported,
        extras=_extras(table, container),
    )


def _module(file: Path, row: ModuleRow, tensors: Mapping[str, Tensor]) -> LoraModule:
    parts = {part: finite(file, key, tensors[key]) for part, key in row.keys.items() if part not in BESIDE}
    factors = kinds()[row.form].factors(Stored(layout_called(row.scheme), parts, row.fit, row.switched_on))
    if row.fit.entries or not kinds()[row.form].pair:
        for matrix in (factors.down, factors.up):  # products of finite numbers may be infinite
            finite(file, row.keys.get("mid", f"the ΔW of {row.module} ({row.form})"), matrix)
    first = next(key for part, key in row.keys.items() if part != "alpha")
    magnitude = (MAGNITUDE_LEFT_OUT,) if row.kind == "dora" else ()
    return LoraModule(
        down=factors.down,
        up=factors.up,
        scale=row.scale,
        alpha=row.alpha,
        assumed=factors.notes + row.assumed + magnitude,
        dtype=tensors[row.keys.get("down", first)].dtype,
        embedding=layout_called(row.scheme).embeds,
        kernel=factors.kernel,
        kind="dora" if row.kind == "dora" else row.form,
        dots_known=row.dots_known,
    )


def _extras(table: Table, container: Container) -> dict[str, Tensor]:
    """What a file of the same layout carries whole, by keys without wrappers."""
    keys = [key for kind in KEPT for key in table.unsupported.get(kind, ()) if key in container.tensors]
    return {unwrap(key).name: container.tensors[key] for key in keys}


def _refuse_together(table: Table) -> None:
    """Refuse a file whose modules unfold to more than memory has."""
    total = sum(row.fit.entries for row in table.rows)
    if total > limits.MOST_TOGETHER:
        largest = max(table.rows, key=lambda row: row.fit.entries)
        raise LorabenchError(
            f"{table.file}: its modules unfold to {total} numbers together, {limits.MOST_TOGETHER} are the most "
            f"({4 * limits.MOST_TOGETHER / 2**30:g} GiB of memory); the largest is {largest.module} with "
            f"{largest.fit.entries}. Split the file, or check where it is from."
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


def _refuse_nothing(table: Table) -> None:
    if not table.unsupported:
        raise LorabenchError(f"{table.file}: the file holds no tensors at all. Export the adapter again.")
    peft_type = str(table.config.get("peft_type", "LORA"))
    read = {kind.peft_type for kind in kinds().values()}
    other = "" if peft_type in read else f"Its configuration says peft_type = {peft_type[:40]}, which is no LoRA. "
    raise LorabenchError(
        f"{table.file}: no LoRA pair (down and up) in it, only what cannot be analysed here. "
        f"{_listed(table.unsupported)}. {other}"
        "Give a LoRA adapter in diffusers, PEFT, kohya, loralib, MLX, SAM or cloneofsimo names."
    )


def _listed(unsupported: Mapping[str, tuple[str, ...]]) -> str:
    return "; ".join(f"{kind}: {some(keys)}" for kind, keys in sorted(unsupported.items()))
