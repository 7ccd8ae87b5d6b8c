"""A zoo: the layers of many labelled adapters as memory-mapped stacks, and its store on disk."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.machine import read_ahead
from lorabench.storage import neighbour, take_place
from lorabench.text import some
from lorabench.zoo.labels import Labels

__all__ = ["Module", "ModuleShape", "Stack", "StoreWriter", "Zoo", "open_store"]

FORMAT = 2
_META, _CEILING = "zoo.json", "ceiling.f32"


@dataclass(frozen=True)
class Stack:
    """One layer of every adapter, float32 [N, rows, cols], as consecutive pieces along N.

    The pieces are memory maps or Arrow buffers: nothing is read before `read`. `index` picks and orders rows of
    the concatenated pieces; None means all of them.
    """

    pieces: tuple[np.ndarray, ...]
    index: Int64[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return sum(len(piece) for piece in self.pieces) if self.index is None else len(self.index)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, rows, cols)."""
        rows, cols = self.pieces[0].shape[1:]
        return len(self), rows, cols

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "n rows cols"]:
        """Rows `start` to `stop`, [n, rows, cols]; a view without a copy where they lie in one piece."""
        if self.index is not None:
            return self._gather(self.index[start:stop])
        found, offset = [], 0
        for piece in self.pieces:
            low, high = max(start - offset, 0), min(stop - offset, len(piece))
            if low < high:
                found.append(piece[low:high])
                read_ahead(found[-1])
            offset += len(piece)
        if not found:
            return np.empty((0, *self.shape[1:]), np.float32)
        return np.asarray(found[0]) if len(found) == 1 else np.concatenate(found)

    def _gather(self, rows: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n rows cols"]:
        out = np.empty((len(rows), *self.pieces[0].shape[1:]), np.float32)
        offset = 0
        for piece in self.pieces:
            inside = np.flatnonzero((rows >= offset) & (rows < offset + len(piece)))
            out[inside] = piece[rows[inside] - offset]
            offset += len(piece)
        return out

    def rows(self, index: Int64[np.ndarray, " n"]) -> "Stack":
        """The same layer of the adapters `index`, in that order; nothing is read."""
        return replace(self, index=index if self.index is None else self.index[index])


@dataclass(frozen=True)
class Module:
    """A place in the base model that carries an adapter, with the names of its two layers.

    ΔW = scale · up @ down, with down [r, d_in] and up [d_out, r].
    """

    name: str
    down: str
    up: str


class ModuleShape(NamedTuple):
    """Sizes of one module: down [rank, d_in], up [d_out, rank], the rank as padded."""

    rank: int
    d_in: int
    d_out: int

    @property
    def size(self) -> int:
        """Numbers of both factors."""
        return self.rank * (self.d_in + self.d_out)


@dataclass(frozen=True)
class Zoo:
    """A labelled collection of N adapters of one base model.

    Attributes:
        name: how results call it.
        layers: ordered layer name -> stack [N, rows, cols]; ranks that differ are padded with zero rows of down
            and zero columns of up, which leaves every ΔW as it was.
        modules: the pairs of layers whose product is a ΔW.
        rank: the rank of every adapter's modules before padding, [N, len(modules)].
        scale: the factor of up @ down in ΔW, [N, len(modules)].
        labels: what the adapters were fine-tuned on.
        fingerprint: changes whenever the data do; part of every cache key.
        ceiling: what each adapter was trained on, as far as a classifier could see it: the mean picture [N, height,
            width] from -1 to 1, or a vector of its texts [N, 1, d]. None where the source does not know.
        target: what a run predicts, the code of every adapter's class, for what learns from it. None where no run has
            said.
        checkpoints: the same adapters after fewer steps of their training, by the number of steps; empty where none
            are kept.
        texts: what every leaf is in words, by its name; read when it is asked for. None where the source does not know.
    """

    name: str
    layers: Mapping[str, Stack]
    modules: tuple[Module, ...]
    rank: Int64[np.ndarray, "n modules"]
    scale: Float32[np.ndarray, "n modules"]
    labels: Labels
    fingerprint: str
    ceiling: Stack | None = None
    target: Int64[np.ndarray, " n"] | None = None
    checkpoints: "Mapping[int, Zoo]" = field(default_factory=dict)
    texts: Callable[[], Mapping[str, str]] | None = None

    def __len__(self) -> int:
        return len(self.labels.adapters)

    @property
    def shown(self) -> str:
        """What the ceiling is of: `pictures`, or `texts` where it has one row."""
        return "texts" if self.ceiling is not None and self.ceiling.shape[1] == 1 else "pictures"

    def read(self, layer: str, start: int = 0, stop: int | None = None) -> Float32[np.ndarray, "n rows cols"]:
        """The adapters `start` to `stop` of one layer, [n, rows, cols], checked to be finite.

        Raises:
            LorabenchError: the weights hold NaN or infinite values.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        values = self.layers[layer].read(start, stop)
        # A sum is one fast pass: it is finite unless a value is not, or the sum itself overflows.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(values.sum(dtype=np.float64))
        if suspicious:
            bad = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2)))
            if len(bad):
                self._refuse_not_finite(layer, [self.labels.adapters[start + i] for i in bad])
        return values

    def _refuse_not_finite(self, layer: str, adapters: list[str]) -> None:
        raise LorabenchError(
            f"{self.name}: NaN or infinite weights in layer {layer} of {some(adapters)}. "
            "Remove these adapters from the data set (a diverged training run leaves such files) and start again."
        )

    def module_index(self, name: str) -> int:
        """The column of module `name` in `rank` and `scale`."""
        return [module.name for module in self.modules].index(name)

    def shape_of(self, module: str) -> ModuleShape:
        """The sizes of the factors of a module, by its name."""
        found = self.modules[self.module_index(module)]
        (_, rank, d_in), (_, d_out, _) = self.layers[found.down].shape, self.layers[found.up].shape
        return ModuleShape(rank, d_in, d_out)

    def layer_rank(self, layer: str) -> Int64[np.ndarray, " n"]:
        """The unpadded rank of one layer in every adapter, [N]; a lone layer's is its smaller side."""
        for column, module in enumerate(self.modules):
            if layer in (module.down, module.up):
                return self.rank[:, column]
        _, rows, cols = self.layers[layer].shape
        return np.full(len(self), min(rows, cols), np.int64)

    def recipe(self) -> dict[str, Float64[np.ndarray, " n"]]:
        """All that is known of how each adapter was made: `labels.recipe`; every module's rank, scale and presence."""
        known = {name: np.asarray(column, np.float64) for name, column in self.labels.recipe.items()}
        there = self.rank > 0  # a module that is missing has no scale
        columns = {"rank": self.rank, "scale": np.where(there, self.scale, 0), "presence": there}
        return known | {
            f"{what} of {module.name}": values[:, number].astype(np.float64)
            for what, values in columns.items()
            for number, module in enumerate(self.modules)
        }

    def rows(self, index: Int64[np.ndarray, " n"]) -> "Zoo":
        """The zoo of the adapters `index`, in that order; nothing is read."""
        picked = hashlib.sha256(np.ascontiguousarray(index).tobytes()).hexdigest()[:16]
        return replace(
            self,
            layers={name: stack.rows(index) for name, stack in self.layers.items()},
            rank=self.rank[index],
            scale=self.scale[index],
            labels=self.labels.rows(index),
            ceiling=None if self.ceiling is None else self.ceiling.rows(index),
            target=None if self.target is None else self.target[index],
            fingerprint=f"{self.fingerprint}-{picked}",
            checkpoints={step: zoo.rows(index) for step, zoo in self.checkpoints.items()},
        )

    def only(self, layers: Sequence[str]) -> "Zoo":
        """The zoo with these layers alone, in the zoo's order; a module stays while both its layers do.

        Raises:
            LorabenchError: a name is no layer of the zoo.
        """
        unknown = [name for name in layers if name not in self.layers]
        if unknown:
            raise LorabenchError(
                f"{self.name} has no layer {unknown[0]!r}; its layers begin with {list(self.layers)[:3]}"
            )
        kept = {name: stack for name, stack in self.layers.items() if name in set(layers)}
        columns = [i for i, m in enumerate(self.modules) if m.down in kept and m.up in kept]
        return replace(
            self,
            layers=kept,
            modules=tuple(self.modules[i] for i in columns),
            rank=self.rank[:, columns],
            scale=self.scale[:, columns],
            checkpoints={step: zoo.only(layers) for step, zoo in self.checkpoints.items()},
        )

    def without(self, layers: Sequence[str]) -> "Zoo":
        """The zoo with these layers taken away."""
        self.only(layers)
        return self.only([name for name in self.layers if name not in set(layers)])


class StoreWriter:
    """Writes a zoo's store folder: adapters are appended in order, and the folder appears only when whole.

    Raw little-endian float32, one file a layer, so that a full disk is an `OSError` here and not a bus error of a
    memory map. The description is written last and the folder is renamed into place: what an interruption leaves
    is never taken for a zoo.

    Args:
        path: the folder to make.
        layers: ordered layer name -> (rows, cols).
    """

    def __init__(self, path: Path, layers: Mapping[str, tuple[int, int]]) -> None:
        self.path = path
        self._shapes = dict(layers)
        self._count = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._remedy = (
            "Free some space, or set cache_dir=DIR (or LORABENCH_CACHE) to a roomier place; nothing was kept."
        )

    def __enter__(self) -> "StoreWriter":
        with explain_disk_errors(self.path, self._remedy):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._partial = neighbour(self.path)
            self._partial.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)

    def append(self, layers: Mapping[str, Float32[np.ndarray, "n rows cols"]]) -> None:
        """Append n adapters: every layer of the store, [n, rows, cols].

        Raises:
            LorabenchError: the disk is full.
        """
        with explain_disk_errors(self.path, self._remedy):
            for number, (name, shape) in enumerate(self._shapes.items()):
                values = np.ascontiguousarray(layers[name], dtype="<f4")
                if values.shape[1:] != shape:
                    raise ValueError(f"{name}: {values.shape[1:]} came, the store has {shape}")
                with (self._partial / f"{number:04d}.f32").open("ab") as file:
                    file.write(values.data)
                self._hash.update(values.data)
        self._count += len(next(iter(layers.values())))

    def finish(
        self,
        name: str,
        modules: Sequence[Module],
        rank: Int64[np.ndarray, "n modules"],
        scale: Float32[np.ndarray, "n modules"],
        labels: Labels,
        ceiling: Float32[np.ndarray, "n height width"] | None = None,
    ) -> None:
        """Write the ceiling, where there is one, and the description; move the folder over another of that name.

        The same store, which another process may have put there meanwhile, is left as it is.
        """
        if not len(rank) == len(scale) == len(labels.adapters) == self._count:
            raise ValueError(f"{self._count} adapters were appended, {len(labels.adapters)} are labelled")
        if ceiling is not None:
            self._write_ceiling(ceiling)
        description = {
            "format": FORMAT,
            "name": name,
            "count": self._count,
            "layers": [[layer, list(shape)] for layer, shape in self._shapes.items()],
            "modules": [[module.name, module.down, module.up] for module in modules],
            "rank": rank.tolist(),
            "scale": scale.tolist(),
            "labels": vars(labels),
            "ceiling": None if ceiling is None else list(ceiling.shape[1:]),
        }
        text = json.dumps(description, default=_as_list)
        self._hash.update(text.encode())
        description["fingerprint"] = self._hash.hexdigest()
        with explain_disk_errors(self.path, self._remedy):
            (self._partial / _META).write_text(json.dumps(description, default=_as_list))
            there = open_store(self.path)
            if there is not None and there.fingerprint == description["fingerprint"]:
                return
            try:
                take_place(self._partial, self.path)
            except OSError:
                if open_store(self.path) is None:
                    raise

    def _write_ceiling(self, ceiling: Float32[np.ndarray, "n height width"]) -> None:
        if len(ceiling) != self._count:
            raise ValueError(f"{self._count} adapters were appended, {len(ceiling)} have a ceiling")
        values = np.ascontiguousarray(ceiling, dtype="<f4")
        with explain_disk_errors(self.path, self._remedy):
            (self._partial / _CEILING).write_bytes(values.data)
        self._hash.update(values.data)


def _as_list(values: np.ndarray) -> list[Any]:
    found: list[Any] = values.tolist()
    return found


def open_store(path: Path) -> Zoo | None:
    """The zoo in a store folder, memory-mapped; None where there is none, or what is there is not whole."""
    try:
        meta = json.loads((path / _META).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        return None
    files = [(f"{number:04d}.f32", shape) for number, (_, shape) in enumerate(meta["layers"])]
    files += [] if meta["ceiling"] is None else [(_CEILING, meta["ceiling"])]
    stacks = [_mapped(path / file, (meta["count"], *shape)) for file, shape in files]
    whole = [stack for stack in stacks if stack is not None]
    if len(whole) < len(stacks):
        return None
    modules = tuple(Module(*entry) for entry in meta["modules"])
    return Zoo(
        name=meta["name"],
        layers={layer: stack for (layer, _), stack in zip(meta["layers"], whole, strict=False)},
        modules=modules,
        rank=np.array(meta["rank"], np.int64).reshape(meta["count"], len(modules)),
        scale=np.array(meta["scale"], np.float32).reshape(meta["count"], len(modules)),
        labels=Labels.from_json(meta["labels"]),
        fingerprint=meta["fingerprint"],
        ceiling=None if meta["ceiling"] is None else whole[-1],
    )


def _mapped(file: Path, shape: tuple[int, ...]) -> Stack | None:
    """A file's numbers; None where it is not there, or not whole."""
    if not file.is_file() or file.stat().st_size != 4 * int(np.prod(shape)):
        return None
    return Stack((np.memmap(file, "<f4", "r", shape=shape),))
