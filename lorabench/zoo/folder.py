"""Adapter files in a folder as a zoo, whatever tools wrote them."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from jaxtyping import Float32, Int64

from lorabench.adapters import LoraModule, layer_names
from lorabench.adapters import load as load_adapter
from lorabench.adapters.names.identity import by_identity
from lorabench.adapters.reading.beside import config_beside
from lorabench.errors import LorabenchError
from lorabench.options import OneOf, check_arguments
from lorabench.progress import track
from lorabench.zoo.folder_index import LABELS, SPLITS, Entry, index_folder
from lorabench.zoo.folder_labels import LabelPlaces, index_labelled
from lorabench.zoo.hub_files import fetch_files
from lorabench.zoo.labels import Labels
from lorabench.zoo.store import Module, StoreWriter, Zoo, open_store

__all__ = ["load"]

Missing = Annotated[str, OneOf(["error", "common", "zero"])]
Kind = Annotated[str, OneOf(["model", "dataset"])]

_log = logging.getLogger(__name__)
_VERSION = 2
_CHUNK_BYTES = 64 * 2**20
_TWO_KINDS = "They adapt different base models or use names that do not agree; keep one kind in the folder."


@dataclass(frozen=True)
class _Size:
    """What the store must know of one module of one adapter."""

    rank: int
    d_in: int
    d_out: int
    scale: float


_NONE = _Size(0, 0, 0, 1.0)


def load(
    path: str | Path | None,
    name: str,
    cache_dir: str | Path,
    missing: Missing = "error",
    labels_in_path: Any = None,
    labels_in_header: Any = None,
    labels_in_table: Any = None,
    repository: str | None = None,
    repository_kind: Kind = "model",
    repository_files: Any = None,
    subset: str | None = None,
) -> Zoo:
    """The zoo of the adapters in a folder: sub-folders named by category, a labels.csv, or labels in other places.

    Every naming scheme that `load_adapter` knows may stand beside any other; modules are the same by their identity.
    Adapters are read one at a time
    and written to a store in `cache_dir`, which later calls map into memory; it is built again when a file
    changes. Ranks that differ are padded with zero rows of down and zero columns of up, and `Zoo.rank` keeps
    the true ones. labels.csv has the columns file and category, and may have leaf (default: the adapter's
    name), group, split (train, val or test), and columns of numbers, which are the recipe.

    Args:
        path: the folder.
        name: how results call the zoo.
        cache_dir: the folder that stores are kept in.
        missing: "error" refuses adapters without a module that others have, "common" keeps the modules that
            all have, "zero" keeps those that any has: where an adapter lacks one, ΔW is 0 and its rank 0.
        labels_in_path: a regular expression over the adapters' paths; see `LabelPlaces`, as for the next two.
        labels_in_header: label -> key in the header of an adapter's file.
        labels_in_table: a table of labels.
        repository: where `path` is None, the repository on the hub whose files are fetched.
        repository_kind: what the hub has it as.
        repository_files: a list of patterns of the files to fetch and to read; None: all.
        subset: the folder of the repository that these are below; None: the repository itself.

    Raises:
        LorabenchError: the folder, a file, a label or the adapters' shapes cannot be used, or the hub not be reached.
    """
    check_arguments(load, {"missing": missing, "repository_kind": repository_kind}, "dataset.")
    places = LabelPlaces.of(labels_in_path, labels_in_header, labels_in_table)
    root = _root(path, repository, repository_kind, repository_files, subset)
    patterns = repository_files if path is None else None
    entries = index_labelled(root, places, patterns) if places.given else index_folder(root, patterns)
    store = Path(cache_dir).expanduser() / "zoos" / f"folder-{_key(root, entries, name, missing, places)}"
    found = open_store(store)
    if found is not None:
        return found
    names: dict[tuple[str, ...], str] = {}
    left_out: dict[str, str] = {}
    sizes = [_sizes(entry, names, left_out) for entry in track(entries, "checking adapters")]
    if left_out:
        file, kinds = next(iter(left_out.items()))
        _log.warning(
            "%d of %d adapters hold tensors that are not part of a LoRA and stay out, such as %s: %s",
            len(left_out), len(entries), file, kinds,
        )  # fmt: skip
    modules = _modules(entries, sizes, missing)
    shapes: dict[str, tuple[int, int]] = {}
    for module in modules:
        largest = max((size[module] for size in sizes if module in size), key=lambda size: size.rank)
        down, up = layer_names(module)
        shapes |= {down: (largest.rank, largest.d_in), up: (largest.d_out, largest.rank)}
    with StoreWriter(store, shapes) as writer:
        for layers in _read(entries, modules, names, shapes):
            writer.append(layers)
        writer.finish(
            name,
            [Module(module, *layer_names(module)) for module in modules],
            np.array([[size.get(module, _NONE).rank for module in modules] for size in sizes], np.int64),
            np.array([[size.get(module, _NONE).scale for module in modules] for size in sizes], np.float32),
            _labels(entries),
        )
    built = open_store(store)
    if built is None:
        raise LorabenchError(f"{store}: vanished or was damaged right after it was written. Start again.")
    return built


def _root(path: str | Path | None, repository: str | None, kind: str, patterns: Any, subset: str | None) -> Path:
    if path is not None:
        return Path(path).expanduser()
    if repository is None:
        raise LorabenchError(
            "dataset.path and dataset.repository are both null; give the folder that holds the adapters "
            "(dataset.path=DIR)"
        )
    return fetch_files(repository, cast("Literal['model', 'dataset']", kind), patterns, subset)


def _key(root: Path, entries: list[Entry], name: str, missing: str, places: LabelPlaces) -> str:
    """Changes with the files, the labels and the options."""
    files = []
    for entry in entries:
        for file in (entry.file, config_beside(entry.file)):
            if file.is_file():
                stat = file.stat()
                files.append([entry.name, file.name, stat.st_size, stat.st_mtime_ns])
    labels = root / LABELS
    text = labels.read_text(encoding="utf-8-sig") if labels.is_file() else None
    said: list[object] = [_VERSION, str(root.resolve()), name, missing, files, text]
    if places.given:
        said.append([[one.category, one.leaf, one.group, one.split, dict(one.recipe)] for one in entries])
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=12).hexdigest()


def _sizes(entry: Entry, names: dict[tuple[str, ...], str], left_out: dict[str, str]) -> dict[str, _Size]:
    """The sizes of an adapter's modules, by the name that the first adapter with this module has for it.

    Args:
        entry: the adapter.
        names: identity -> that name; new ones are added.
        left_out: file -> kinds of tensors that are no part of a LoRA; it is added where it holds some.
    """
    adapter = load_adapter(entry.file)
    if adapter.unsupported:
        kinds = ", ".join(f"{kind} ({len(keys)})" for kind, keys in adapter.unsupported.items())
        left_out[str(entry.file)] = kinds
    sizes = {}
    for key, name in by_identity(adapter.modules).items():
        module = adapter.modules[name]
        sizes[names.setdefault(key, name)] = _Size(module.rank, module.down.shape[1], module.up.shape[0], module.scale)
    return sizes


def _modules(entries: list[Entry], sizes: list[dict[str, _Size]], missing: str) -> list[str]:
    """The modules of the zoo, in the order of the adapter that has the most; behind them what only others have.

    Raises:
        LorabenchError: modules are missing in some adapters, none is common to all, or widths differ.
    """
    counts = Counter(module for size in sizes for module in size)
    if missing == "error":
        _refuse_missing(entries, sizes, counts)
    if missing == "zero":
        _refuse_strangers(entries, sizes)
    enough = 1 if missing == "zero" else len(entries)
    fullest: dict[str, _Size] = max(sizes, key=len)
    modules = [module for module in dict.fromkeys([*fullest, *counts]) if counts[module] >= enough]
    if not modules:
        raise LorabenchError(
            f"no module is common to all {len(entries)} adapters: {entries[0].name} begins with "
            f"{next(iter(sizes[0]))}. {_TWO_KINDS}"
        )
    for module in modules:
        owners = [(entry, size[module]) for entry, size in zip(entries, sizes, strict=True) if module in size]
        owner, first = owners[0]
        for entry, other in owners[1:]:
            if (other.d_in, other.d_out) != (first.d_in, first.d_out):
                raise LorabenchError(
                    f"module {module} is {first.d_out} x {first.d_in} in {owner.name} and "
                    f"{other.d_out} x {other.d_in} in {entry.name}: they adapt different base models. Keep "
                    "adapters "
                    "of one base model in the folder (ranks may differ, they are padded)."
                )
    return modules


def _refuse_missing(entries: list[Entry], sizes: list[dict[str, _Size]], counts: Mapping[str, int]) -> None:
    for entry, size in zip(entries, sizes, strict=True):
        lacking = [module for module in counts if module not in size]
        if lacking:
            owner = next(e.name for e, s in zip(entries, sizes, strict=True) if lacking[0] in s)
            more = f" and {len(lacking) - 1} more modules" if len(lacking) > 1 else ""
            raise LorabenchError(
                f"{entry.file}: lacks the layer {layer_names(lacking[0])[0]}{more}, which {owner} has. Set "
                "dataset.missing=common to keep only the layers that all adapters have, dataset.missing=zero to take "
                "what is missing for an update of nothing, or remove this adapter."
            )


def _refuse_strangers(entries: list[Entry], sizes: list[dict[str, _Size]]) -> None:
    """Refuse adapters that no chain of shared modules leads to from the first: nothing says that the base is one."""
    known, left = set(sizes[0]), list(range(1, len(sizes)))
    while joined := [number for number in left if not known.isdisjoint(sizes[number])]:
        known.update(*(sizes[number] for number in joined))
        left = [number for number in left if number not in set(joined)]
    if left:
        stranger = left[0]
        raise LorabenchError(
            f"{entries[stranger].file}: shares no module with {entries[0].name} and those that share some with it; it "
            f"begins with {next(iter(sizes[stranger]))}, the other with {next(iter(sizes[0]))}. {_TWO_KINDS}"
        )


def _read(
    entries: list[Entry],
    modules: list[str],
    names: Mapping[tuple[str, ...], str],
    shapes: Mapping[str, tuple[int, int]],
) -> Iterator[dict[str, Float32[np.ndarray, "n rows cols"]]]:
    """The layers of consecutive adapters, padded, about 64 MiB at a time."""
    floats = sum(rows * cols for rows, cols in shapes.values())
    step = max(1, _CHUNK_BYTES // (4 * floats))
    chunk: dict[str, Float32[np.ndarray, "n rows cols"]] = {}
    for number, entry in enumerate(track(entries, "reading adapters")):
        row = number % step
        if row == 0:
            if chunk:
                yield chunk
            count = min(step, len(entries) - number)
            chunk = {layer: np.zeros((count, *shape), np.float32) for layer, shape in shapes.items()}
        adapter = load_adapter(entry.file)
        own = {names[key]: name for key, name in by_identity(adapter.modules).items()}
        for module in modules:
            if module in own:
                _place(chunk, row, module, adapter.modules[own[module]])
    yield chunk


def _place(chunk: dict[str, Float32[np.ndarray, "n rows cols"]], row: int, name: str, module: LoraModule) -> None:
    down, up = layer_names(name)
    chunk[down][row, : module.rank] = module.down.numpy()
    chunk[up][row, :, : module.rank] = module.up.numpy()


def _labels(entries: list[Entry]) -> Labels:
    groups = [entry.group for entry in entries if entry.group is not None]
    splits = [SPLITS.index(entry.split) for entry in entries if entry.split is not None]
    split: Int64[np.ndarray, " n"] | None = np.array(splits, np.int64) if splits else None
    return Labels.of(
        adapters=[entry.name for entry in entries],
        category=[entry.category for entry in entries],
        leaf=[entry.leaf for entry in entries],
        group=groups or None,
        split=split,
        recipe={name: np.array([entry.recipe[name] for entry in entries]) for name in entries[0].recipe},
    )
