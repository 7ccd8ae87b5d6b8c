"""One table of what an adapter file holds, module by module; for safetensors from the header alone, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabench.adapters.reading.experts import set_experts_aside
from lorabench.adapters.reading.header import (
    Header,
    TensorInfo,
    find_adapter_file,
    first_look,
    read_header,
    read_json,
    read_scalars,
)
from lorabench.adapters.reading.kinds import scale_of
from lorabench.adapters.reading.naming import component
from lorabench.adapters.reading.scaling import saved_config
from lorabench.adapters.reading.shapes import fit
from lorabench.adapters.reading.sorting import BESIDE, ModuleKeys, sort_keys
from lorabench.adapters.reading.switching import switches
from lorabench.errors import LorabenchError

__all__ = ["ModuleRow", "Table", "read_table"]

_READ = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0")
"""Types that `load` makes float32 of."""


@dataclass(frozen=True)
class ModuleRow:
    """One module.

    Attributes:
        module: canonical name.
        part: the model's part that it belongs to (`naming.component`).
        kind: "linear", "conv", "tucker", "embedding", "loha", "lokr", "adalora", or "dora" for any of
            them with a magnitude.
        rank: r of the stored factors; 0 for LoKr of two whole matrices.
        alpha: α, or None where nothing says it.
        alpha_source: where α was found, or what was assumed.
        scale: the factor in front of up @ down.
        scale_rule: how it follows from α and r.
        shapes: part -> shape.
        dtype: safetensors' name of the type that the factors are stored in.
        keys: part -> key.
        assumed: in words, what the file did not say.
    """

    module: str
    part: str
    kind: str
    rank: int
    alpha: float | None
    alpha_source: str
    scale: float
    scale_rule: str
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str
    keys: Mapping[str, str]
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """What an adapter file holds.

    Attributes:
        file: the file that was read.
        format: "safetensors" or "pickle".
        header: of a safetensors file.
        rows: the modules that can be analysed, by name.
        unsupported: kind -> keys that cannot be analysed.
        problems: what is wrong with modules, in words; they have no row.
        schemes: naming schemes.
        metadata: of a safetensors file.
        config: adapter_config.json beside the file.
        tensors: key -> shape and type of every tensor.
    """

    file: Path
    format: str
    header: Header | None = field(repr=False)
    rows: tuple[ModuleRow, ...]
    unsupported: Mapping[str, tuple[str, ...]]
    problems: tuple[str, ...]
    schemes: tuple[str, ...]
    metadata: Mapping[str, str] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, TensorInfo] = field(repr=False)


def read_table(path: Path | str) -> Table:
    """The table of an adapter file or folder.

    Args:
        path: as for `load`.

    Raises:
        LorabenchError: the file cannot be read at all; what is wrong with single modules is in `problems`.
    """
    file = find_adapter_file(Path(path))
    header = read_header(file) if first_look(file)[1] is None else None
    tensors, alphas, leftovers = (header.tensors, {}, ()) if header is not None else _from_pickle(file)
    metadata: Mapping[str, str] = {} if header is None else header.metadata
    keys = sort_keys(file, tensors, leftovers)
    beside, inside = read_json(file.parent / "adapter_config.json"), saved_config(file, metadata)
    set_experts_aside(keys, inside or beside)
    if header is not None:
        alphas = read_scalars(header, [one.parts["alpha"] for one in keys.modules.values() if "alpha" in one.parts])
    rows, problems = [], []
    for name, one in keys.modules.items():
        try:
            rows.append(_row(file, name, one, tensors, alphas, inside, beside))
        except LorabenchError as error:
            problems.append(str(error).removeprefix(f"{file}: "))
    return Table(
        file=file,
        format="pickle" if header is None else "safetensors",
        header=header,
        rows=tuple(rows),
        unsupported={kind: tuple(found) for kind, found in sorted(keys.unsupported.items())},
        problems=tuple(problems),
        schemes=keys.schemes,
        metadata=metadata,
        config=beside,
        tensors=tensors,
    )


def _row(
    file: Path,
    name: str,
    one: ModuleKeys,
    tensors: Mapping[str, TensorInfo],
    alphas: Mapping[str, float],
    inside: Mapping[str, Any],
    beside: Mapping[str, Any],
) -> ModuleRow:
    shapes = {part: tensors[key].shape for part, key in one.parts.items()}
    found = fit(file, name, one, shapes)
    _refuse_quantised(file, one, tensors)
    merged = switches(file, name, found, inside or beside)[1]
    known = scale_of(file, name, one, found.rank, alphas.get(one.parts.get("alpha", "")), inside, beside)
    first = next(key for part, key in one.parts.items() if part != "alpha")
    return ModuleRow(
        module=name,
        part=component(name),
        kind=_kind(one, shapes),
        rank=found.rank,
        alpha=known.scale.alpha,
        alpha_source=known.source,
        scale=known.scale.value,
        scale_rule=known.rule,
        shapes={part: shape for part, shape in shapes.items() if part != "alpha"},
        dtype=tensors[one.parts.get("down", first)].dtype,
        keys=one.parts,
        assumed=merged + known.scale.assumed,
    )


def _refuse_quantised(file: Path, one: ModuleKeys, tensors: Mapping[str, TensorInfo]) -> None:
    for part, key in one.parts.items():
        if part not in BESIDE and tensors[key].dtype not in _READ:
            raise LorabenchError(
                f"{file}: {key} is stored as {tensors[key].dtype}; quantised factors cannot be read. "
                "Export the adapter in float16, bfloat16 or float32."
            )


def _kind(one: ModuleKeys, shapes: Mapping[str, tuple[int, ...]]) -> str:
    if one.kind != "lora":
        return one.kind
    if one.scheme == "peft-embedding":
        return "embedding"
    if "mid" in shapes:
        return "tucker"
    return "conv" if len(shapes["down"]) > 2 else "linear"


def _from_pickle(file: Path) -> tuple[dict[str, TensorInfo], dict[str, float], tuple[str, ...]]:
    # Only a pickle needs torch: its header is a program.
    from lorabench.adapters.reading.container import read_container

    names = {
        "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL",
        "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
        "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "float4_e2m1fn_x2": "F4",
    }  # fmt: skip
    container = read_container(file)
    tensors, alphas = {}, {}
    for key, tensor in container.tensors.items():
        name = str(tensor.dtype).removeprefix("torch.")
        dtype = names.get(name, name.replace("uint", "U").replace("int", "I").upper())
        tensors[key] = TensorInfo(tuple(tensor.shape), dtype)
        if key.endswith(".alpha") and tensor.numel():
            alphas[key] = float(tensor.flatten()[0])
    return tensors, alphas, container.leftovers
