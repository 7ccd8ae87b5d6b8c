"""What one adapter file is, where it comes from and whether it is whole, by its header alone where it has one."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorabench.adapters.metadata.evidence import Said, said, sources
from lorabench.adapters.metadata.family import base_model
from lorabench.adapters.metadata.origin import model_info, network_info, training_info
from lorabench.adapters.metadata.validation import validate
from lorabench.adapters.reading.header import explain_reading
from lorabench.adapters.reading.table import ModuleRow, Table, read_table
from lorabench.storage import file_sha256

__all__ = ["Inspection", "inspect", "inspect_table"]

HASHED_BELOW = 64 * 2**20
"""Bytes: a file that bears hashes and is smaller has them checked without being asked."""


@dataclass(frozen=True)
class Inspection:
    """What a file says. In the first four blocks every value is {"value": ..., "source": ...}.

    Attributes:
        file_info: name, size, format.
        model_info: base model, and what the author says.
        training_info: method, learning rates, steps, dataset.
        architecture_info: ranks, α, modules, parameters, types.
        validation_info: "valid", "errors", "warnings", "checks", "unsupported" (kind -> keys), "assumed".
        extraction_time: when this was read, ISO 8601 in UTC.
        metadata: the file's metadata, its numbers and JSON decoded.
        raw_metadata: the same as its strings.
        config: adapter_config.json beside the file.
        rows: the canonical table of modules.
    """

    file_info: Mapping[str, Said]
    model_info: Mapping[str, Said]
    training_info: Mapping[str, Said]
    architecture_info: Mapping[str, Said]
    validation_info: Mapping[str, Any]
    extraction_time: str
    metadata: Mapping[str, Any]
    raw_metadata: Mapping[str, str]
    config: Mapping[str, Any]
    rows: tuple[ModuleRow, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; warnings are not."""
        return bool(self.validation_info["valid"])

    @property
    def modules(self) -> tuple[dict[str, Any], ...]:
        """The canonical table, one dict a module."""
        return tuple(_module(row) for row in self.rows)

    def as_dict(self, modules: bool = True) -> dict[str, Any]:
        """All of it for JSON, with or without the table of modules."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "rows"}
        return found | ({"modules": list(self.modules)} if modules else {})


def inspect(
    path: Path | str, *, strict: bool = False, hashes: bool | None = None, top_tags: int = 20, values: bool = False
) -> Inspection:
    """What an adapter file says of itself.

    A safetensors file's header alone is read, and neither its weights nor torch are needed; only hashes need the
    whole file.

    Args:
        path: a file, or a folder that holds one adapter.
        strict: whether a tensor that cannot be analysed makes the file invalid.
        hashes: whether to hold the file's hashes against its bytes; None: where it bears any and is below 64 MiB.
            True also gives the sha256 of the whole file.
        top_tags: how many of the dataset's most frequent tags to name.
        values: whether to read the weights too, and look for NaN, infinity and untrained modules.

    Raises:
        LorabenchError: the file cannot be read at all.

    Example:
        >>> import tempfile, torch
        >>> from lorabench.adapters import LoraModule, save
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> _ = save(file, {"unet.mid_block.to_q": LoraModule(torch.eye(2, 5), torch.eye(4, 2))}, "diffusers-peft")
        >>> inspect(file).architecture_info["modules"]["value"], inspect(file).validation_info["valid"]
        (1, True)
    """
    return inspect_table(read_table(path), strict=strict, hashes=hashes, top_tags=top_tags, values=values)


def inspect_table(
    table: Table, *, strict: bool = False, hashes: bool | None = None, top_tags: int = 20, values: bool = False
) -> Inspection:
    """`inspect` of a table that was read already."""
    known = sources(table)
    with explain_reading(table.file):
        stat = table.file.stat()
    network, base = network_info(known), base_model(known)
    whole = hashes is True
    checked = table.header is not None and (whole or (hashes is None and stat.st_size < HASHED_BELOW))
    return Inspection(
        file_info=_file(table, stat, whole),
        model_info=model_info(known, base),
        training_info=training_info(known, top_tags),
        architecture_info={**_architecture(table), **network},
        validation_info=validate(known, network, base, strict=strict, hashes=checked, values=values),
        extraction_time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        metadata=known.metadata,
        raw_metadata=dict(table.metadata),
        config=dict(table.config),
        rows=table.rows,
    )


def _file(table: Table, stat: os.stat_result, whole: bool) -> dict[str, Said]:
    found = {
        "name": said(table.file.name, "path"),
        "folder": said(str(table.file.parent), "path"),
        "size": said(stat.st_size, "file system"),
        "modified": said(datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(timespec="seconds"), "file system"),
        "format": said(table.format, "first bytes"),
        "naming": said(list(table.schemes), "tensor names"),
        "tensors": said(len(table.tensors), "header" if table.header else "tensors"),
    }
    if table.header is not None:
        found["header_size"] = said(table.header.data, "header")
        found["metadata_entries"] = said(len(table.metadata), "header")
    if whole:
        with explain_reading(table.file):
            found["sha256"] = said(file_sha256(table.file), "all bytes")
    return found


def _architecture(table: Table) -> dict[str, Said]:
    rows = table.rows
    parts = {part: _counts(row.kind for row in rows if row.part == part) for part in sorted({row.part for row in rows})}
    used = {key for row in rows for key in row.keys.values()}
    parameters = sum(info.count for key, info in table.tensors.items() if key in used and not key.endswith(".alpha"))
    others = sum(info.count for key, info in table.tensors.items() if key not in used)
    alpha_from = _where(row.alpha_source for row in rows)
    found = {
        "modules": said(len(rows), "tensor names"),
        "rank": _most([row.rank for row in rows], "shapes"),
        "alpha": _most([row.alpha for row in rows], alpha_from),
        "ranks": said(_counts(row.rank for row in rows), "shapes"),
        "alphas": said(_counts(row.alpha for row in rows), alpha_from),
        "scales": said(_counts(row.scale for row in rows), _where(row.scale_rule for row in rows)),
        "modules_by_part": said(parts, "tensor names"),
        "target_modules": said(_counts(_target(row.module) for row in rows), "tensor names"),
        "parameters": said(parameters, "shapes"),
        "other_parameters": said(others, "shapes"),
        "dtypes": said(_counts(info.dtype for info in table.tensors.values()), "header" if table.header else "tensors"),
    }
    return {name: one for name, one in found.items() if one is not None}


def _most(values: Sequence[Any], source: str) -> Said | None:
    """The value that most modules have."""
    counted = Counter(values).most_common()
    return said(counted[0][0], f"{source}{', the most frequent' if len(counted) > 1 else ''}") if counted else None


def _counts(values: Iterable[Any]) -> dict[Any, int]:
    """Value -> how often, by value; None (nothing says it) stands last."""
    counted = Counter(values)
    return {value: counted[value] for value in sorted(counted, key=lambda one: (one is None, one))}


def _where(places: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(places)) or "tensors"


def _target(module: str) -> str:
    """What a module is called in every block: `to_out.0` and `to_q`, not the number of its block."""
    parts = module.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdecimal() and len(parts) > 1 else parts[-1]


def _module(row: ModuleRow) -> dict[str, Any]:
    return {
        "module": row.module,
        "part": row.part,
        "kind": row.kind,
        "rank": row.rank,
        "alpha": row.alpha,
        "alpha_source": row.alpha_source,
        "scale": row.scale,
        "scale_rule": row.scale_rule,
        "shapes": {part: list(shape) for part, shape in row.shapes.items()},
        "dtype": row.dtype,
        "keys": dict(row.keys),
        "assumed": list(row.assumed),
    }
