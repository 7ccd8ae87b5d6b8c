"""The hub's data sets of adapters, or a copy of one on disk, as a zoo."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from lorabench.adapters.layouts import layout_called
from lorabench.adapters.reading.naming import parse_key
from lorabench.errors import LorabenchError
from lorabench.machine import map_in_lanes
from lorabench.options import AtLeast, check_arguments
from lorabench.progress import bar, track
from lorabench.zoo.columns import Flat, LayerColumn, is_nested
from lorabench.zoo.hub_labels import LabelColumns, read_labels
from lorabench.zoo.hub_source import Part, fingerprint_of, from_folder, from_hub
from lorabench.zoo.hub_subset import rank_said
from lorabench.zoo.labels import Labels
from lorabench.zoo.store import Module, StoreWriter, Zoo, open_store

__all__ = ["from_parts", "load"]

_CHUNK_BYTES = 64 * 2**20
_NUMBER = re.compile(r"\.\d+$")


def load(
    name: str,
    repository: str | None,
    cache_dir: str | Path,
    path: str | Path | None = None,
    per_category: Annotated[int | None, AtLeast(1)] = None,
    seed: int = 0,
    category: str = "category_label",
    category_name: str | None = "category_name",
    leaf: str | None = "leaf_id",
    group: str | None = "leaf_id",
    adapter: str | None = "folder",
    subset: str | None = None,
    rank: Annotated[int | None, AtLeast(1)] = None,
    recipe: Mapping[str, str] | None = None,
    rank_in_subset: str | None = None,
) -> Zoo:
    """The zoo of a data set in the schema of `jacekduszenko/lora-ws-*`, memory-mapped.

    Every column whose name holds a LoRA key is a layer [N, rows, cols]; a module is a pair of down and up.
    The layers are Arrow's buffers, viewed without a copy. Where they cannot be (other dtypes, adapters of
    different ranks) they are written once to a store below `cache_dir`, padded, and mapped from there.

    Args:
        name: how results call the zoo.
        repository: the data set on the hub; asked only where `path` is None.
        cache_dir: where parquet files, and what cannot be viewed, are converted to.
        path: a folder that `save_to_disk` wrote, or parquet files (a folder or one file).
        per_category: keep this many adapters of each category, drawn by `seed`; None keeps all.
        seed: of that draw.
        category: the column of the root label.
        category_name: the column with its name for people, or None.
        leaf: the column of the leaf concept, or None.
        group: the column of what must not be on both sides of a split, or None.
        adapter: the column that names an adapter in messages, or None.
        subset: part of the repository, where it has several.
        rank: of all adapters, where a layer is one list of numbers; its matrix is taken to lie there row after row.
        recipe: name of a number of how each adapter was made -> its column; `target=NAME` predicts it.
        rank_in_subset: a regular expression whose first group is the rank in the name of `subset`; see `rank_said`.

    Raises:
        LorabenchError: no network, nothing readable at `path`, a column missing, or layers that do not fit.
    """
    check_arguments(load, {"per_category": per_category, "rank": rank}, "dataset.")
    rank = rank_said(rank, subset, rank_in_subset, copied=path is not None)
    cache = Path(cache_dir).expanduser()
    if path is not None:
        origin, parts = str(path), from_folder(Path(path).expanduser(), cache)
    elif repository is not None:
        origin, parts = repository, from_hub(repository, subset)
    else:
        raise LorabenchError(
            "dataset.path and dataset.repository are both null; give a folder (dataset.path=DIR) or a data set "
            "on the hub (dataset.repository=OWNER/NAME, or dataset=1k)"
        )
    columns = LabelColumns(category, category_name, leaf, group, adapter, recipe or {})
    zoo = from_parts(name, parts, columns, cache, origin, rank)
    return zoo if per_category is None else zoo.rows(_draw(zoo.labels, per_category, seed))


def from_parts(
    name: str, parts: Sequence[Part], columns: LabelColumns, cache_dir: Path, origin: str, rank: int | None = None
) -> Zoo:
    """The zoo of data sets that follow one another; `origin` names them in errors, `rank` is as in `load`."""
    parts = [part for part in parts if len(part.dataset)]
    if not parts:
        raise LorabenchError(f"{origin}: the data set has no rows; it needs one adapter a row")
    tables = [part.table(cache_dir) for part in parts]
    names = _layer_names(tables[0].schema, origin)
    labels = read_labels(parts, tables, columns, origin)
    layers = _layers(names, tables, origin, rank)
    modules = _modules(names, origin)
    ranks = _ranks(layers, modules, origin)
    scale = _scales(tables, modules, ranks, origin)
    zoo = Zoo(name, {}, modules, ranks, scale, labels, _fingerprint(parts, layers, labels, scale))
    if all(layer.viewable for layer in layers.values()):
        return replace(zoo, layers={layer: column.stack() for layer, column in layers.items()})
    return _stored(zoo, layers, cache_dir)


def _layer_names(schema: pa.Schema, origin: str) -> list[str]:
    """The columns that are layers; what cannot be analysed is refused, not skipped in silence."""
    nested = {name: parse_key(name) for name in schema.names if is_nested(schema.field(name).type)}
    foreign = {name: key.part for name, key in nested.items() if key.part not in ("down", "up", "alpha", "other")}
    if foreign:
        first, kind = next(iter(foreign.items()))
        raise LorabenchError(
            f"{origin}: {len(foreign)} columns hold what cannot be analysed, the first is {first!r} "
            f"({kind}). Remove them from the data set; a layer is the down or the up matrix of a LoRA."
        )
    names = [name for name in schema.names if parse_key(name).is_layer]
    if not names:
        raise LorabenchError(
            f"{origin}: no column is a layer; a layer's name holds a LoRA key, for instance "
            f"'unet.mid_block.to_q.lora.down.weight'. The columns are {', '.join(schema.names[:12])}"
        )
    return names


def _layers(names: Sequence[str], tables: Sequence[pa.Table], origin: str, rank: int | None) -> dict[str, LayerColumn]:
    """All layers, a thread each: their offsets are read from the disk, and a third of all bytes."""
    with bar("Opening layers", len(names)) as shown:

        def layer(name: str) -> LayerColumn:
            found = _layer(name, tables, origin, rank)
            shown.advance()
            return found

        return dict(zip(names, map_in_lanes(layer, names), strict=True))


def _layer(name: str, tables: Sequence[pa.Table], origin: str, rank: int | None) -> LayerColumn:
    for table in tables:
        if name not in table.schema.names:
            raise LorabenchError(f"{origin}: column {name!r} is missing in one of the splits; every adapter needs it")
    arrays = [table.column(name) for table in tables]
    key = parse_key(name)
    turned = layout_called(key.scheme).transposed
    flat = None if rank is None else Flat(rank, rows=(key.part == "down") is not turned)
    return LayerColumn.of(name, arrays, origin, turned, flat)


def _modules(names: Sequence[str], origin: str) -> tuple[Module, ...]:
    """Pairs of down and up, in the order of the columns; a layer without its partner is in none."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        key = parse_key(name)
        sides = found.setdefault(key.module, {})
        if key.part in sides:
            raise LorabenchError(f"{origin}: columns {sides[key.part]!r} and {name!r} are the same layer; remove one")
        sides[key.part] = name
    _join_numbered(found)
    return tuple(
        Module(module, sides["down"], sides["up"]) for module, sides in found.items() if {"down", "up"} <= sides.keys()
    )


def _join_numbered(found: dict[str, dict[str, str]]) -> None:
    """Pair `m.lora.down.weight.80` with `m.lora.up.weight.81`, where no other layer claims the name `m`."""
    lone: dict[str, list[str]] = {}
    for module, sides in found.items():
        if len(sides) == 1:
            lone.setdefault(_NUMBER.sub("", module), []).append(module)
    for module, members in lone.items():
        sides = {side: name for member in members for side, name in found[member].items()}
        if len(members) == len(sides) == 2 and module not in found:
            for member in members:
                del found[member]
            found[module] = sides


def _ranks(layers: Mapping[str, LayerColumn], modules: Sequence[Module], origin: str) -> Int64[np.ndarray, "n modules"]:
    """Every adapter's rank in every module, [N, modules], after a check that only ranks differ."""
    free = {module.down: 0 for module in modules} | {module.up: 1 for module in modules}
    for name, layer in layers.items():
        fixed = layer.shapes if name not in free else layer.shapes[:, [1 - free[name]]]
        other = np.flatnonzero((fixed != fixed[0]).any(axis=1))
        if len(other):
            raise LorabenchError(
                f"{origin}: layer {name!r} is {_size(layer, 0)} in row 0 and {_size(layer, other[0])} in "
                f"row {other[0]}: not adapters of one base model. Ranks may differ (they are padded), widths "
                "may not; keep the rows of one base model."
            )
    for module in modules:
        down, up = layers[module.down], layers[module.up]
        other = np.flatnonzero(down.shapes[:, 0] != up.shapes[:, 1])
        if len(other):
            raise LorabenchError(
                f"{origin}: in row {other[0]} the module {module.name!r} has down {_size(down, other[0])} "
                f"and up {_size(up, other[0])}, whose ranks differ. Remove this row from the data set."
            )
    count = len(next(iter(layers.values())).shapes)
    return np.array([layers[module.down].shapes[:, 0] for module in modules], np.int64).reshape(-1, count).T.copy()


def _size(layer: LayerColumn, row: int | np.int64) -> list[int]:
    found: list[int] = layer.shapes[row].tolist()
    return found


def _scales(
    tables: Sequence[pa.Table], modules: Sequence[Module], rank: Int64[np.ndarray, "n modules"], origin: str
) -> Float32[np.ndarray, "n modules"]:
    """The scale alpha / rank where the data set has alpha columns, 1 elsewhere."""
    alphas = {parse_key(name).module: name for name in tables[0].schema.names if parse_key(name).part == "alpha"}
    scale = np.ones(rank.shape, np.float32)
    for column, module in enumerate(modules):
        name = alphas.get(module.name)
        if name is None:
            continue
        values = np.concatenate([_numbers(table.column(name), name, origin) for table in tables])
        scale[:, column] = values / rank[:, column]
    return scale


def _numbers(column: pa.ChunkedArray, name: str, origin: str) -> Float32[np.ndarray, " n"]:
    """One number an adapter, be it a number or a list of one."""
    count = len(column)
    while is_nested(column.type):
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    number = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
    if len(column) != count or column.null_count or not number:
        raise LorabenchError(f"{origin}: column {name!r} needs one number an adapter, none missing; mend or remove it")
    return np.asarray(column.to_numpy(), np.float32)


def _fingerprint(
    parts: Sequence[Part],
    layers: Mapping[str, LayerColumn],
    labels: Labels,
    scale: Float32[np.ndarray, "n modules"],
) -> str:
    """Changes with the data, and is known without reading them all.

    `datasets` gives changed data another fingerprint of its own; labels, scales and a sample of every layer's
    weights catch files that were replaced under an old one.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        schema = part.dataset.data.schema.remove_metadata()
        digest.update(repr([fingerprint_of(part.dataset), part.split, len(part.dataset), str(schema)]).encode())
    # Without the adapters' names: they say where the data lie.
    coded = [labels.category, labels.leaf, labels.group, labels.split]
    fields = [None if codes is None else codes.tolist() for codes in coded]
    made = [{name: column.tolist() for name, column in labels.recipe.items()}] if labels.recipe else []
    digest.update(json.dumps([*fields, labels.category_names, labels.leaf_names, *made]).encode())
    digest.update(scale.tobytes())
    for layer in layers.values():
        digest.update(layer.sample())
    return digest.hexdigest()


def _stored(zoo: Zoo, layers: Mapping[str, LayerColumn], cache_dir: Path) -> Zoo:
    """The zoo with its layers converted, once, to float32 of one shape."""
    path = cache_dir / "zoos" / f"hub-{zoo.fingerprint}"
    found = open_store(path)
    if found is None:
        shapes = {name: column.shape for name, column in layers.items()}
        step = max(1, _CHUNK_BYTES // (4 * sum(rows * cols for rows, cols in shapes.values())))
        with StoreWriter(path, shapes) as writer:
            for start in track(range(0, len(zoo), step), "Converting layers"):
                stop = min(start + step, len(zoo))
                writer.append({name: column.padded(start, stop) for name, column in layers.items()})
            writer.finish(zoo.name, zoo.modules, zoo.rank, zoo.scale, zoo.labels)
        found = open_store(path)
    if found is None:
        raise LorabenchError(f"{path} was changed while it was opened; start again")
    return replace(zoo, layers=found.layers)


def _draw(labels: Labels, per_category: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Rows of `per_category` adapters of each category (all of a smaller one), in their order."""
    random = np.random.default_rng(seed)
    drawn = [
        random.permutation(np.flatnonzero(labels.category == code))[:per_category]
        for code in range(len(labels.category_names))
    ]
    return np.sort(np.concatenate(drawn))
