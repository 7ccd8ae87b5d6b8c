"""A data set's list columns as stacks of matrices: Arrow's own buffers, viewed without a copy."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from lorabench.errors import LorabenchError
from lorabench.machine import read_ahead
from lorabench.zoo.store import Stack

__all__ = ["Flat", "LayerColumn", "is_nested"]

_BLOCK = 2**20
_SAMPLES = 16


def is_nested(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists, as a layer's does."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


@dataclass(frozen=True)
class _Chunk:
    """Consecutive adapters of one column: their numbers in a row, and the shape of each one's matrix."""

    values: np.ndarray
    shapes: Int64[np.ndarray, "n 2"]

    @property
    def starts(self) -> Int64[np.ndarray, " n_plus_1"]:
        return np.concatenate([[0], np.cumsum(self.shapes.prod(axis=1))])


@dataclass(frozen=True)
class Flat:
    """One side of the matrices in a column of flat lists: `size` rows, or columns.

    Attributes:
        size: of that side.
        rows: whether it is the rows.
    """

    size: int
    rows: bool


@dataclass(frozen=True)
class LayerColumn:
    """One layer of N adapters as it lies in Arrow chunks; nothing is copied.

    Attributes:
        chunks: pieces along N.
        shapes: (rows, cols) of every adapter's matrix, [N, 2]; a convolution's kernel is part of cols.
        turned: whether the buffers hold the transposed matrices.
    """

    chunks: tuple[_Chunk, ...]
    shapes: Int64[np.ndarray, "n 2"]
    turned: bool = False

    @classmethod
    def of(
        cls, name: str, arrays: list[pa.ChunkedArray], origin: str, turned: bool = False, flat: Flat | None = None
    ) -> "LayerColumn":
        """The column `name` whose parts are `arrays`; `origin` names the file or repository in errors.

        Args:
            name: of the column.
            arrays: one a data set.
            origin: the file or repository.
            turned: whether they hold the transposed matrices.
            flat: what is known of the shape where they may hold one list of numbers an adapter, row after row.

        Raises:
            LorabenchError: values are missing, no numbers, or no matrices.
        """
        chunks: list[_Chunk] = []
        done = 0
        for array in (chunk for part in arrays for chunk in part.chunks if len(chunk)):
            chunks.append(_chunk(array, _Place(origin, name, done), flat))
            done += len(array)
        first = chunks[0].shapes[0]
        if all((chunk.shapes == first).all() for chunk in chunks):
            shapes = np.broadcast_to(first, (done, 2))
        else:
            shapes = np.concatenate([chunk.shapes for chunk in chunks])
        return cls(tuple(chunks), shapes[:, ::-1] if turned else shapes, turned)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """The shape that holds every adapter's matrix."""
        rows, cols = self.shapes.max(axis=0).tolist()
        return rows, cols

    @cached_property
    def uniform(self) -> bool:
        """Whether all adapters have one shape."""
        return bool((self.shapes == self.shapes[0]).all())

    @property
    def viewable(self) -> bool:
        """Whether the buffers are float32 matrices of one shape, so that `stack` copies nothing."""
        return self.uniform and all(chunk.values.dtype == np.dtype("<f4") for chunk in self.chunks)

    def stack(self) -> Stack:
        """The column as a stack over Arrow's buffers."""
        rows, cols = self.shape[::-1] if self.turned else self.shape
        pieces = [chunk.values.reshape(-1, rows, cols) for chunk in self.chunks]
        return Stack(tuple(piece.transpose(0, 2, 1) if self.turned else piece for piece in pieces))

    def padded(self, start: int, stop: int) -> Float32[np.ndarray, "n rows cols"]:
        """Adapters `start` to `stop` as float32, smaller matrices padded with zeros to the common shape."""
        out = np.zeros((stop - start, *self.shape), np.float32)
        offset = 0
        for chunk in self.chunks:
            low, high = max(start - offset, 0), min(stop - offset, len(chunk.shapes))
            if low < high:
                part = out[offset + low - start : offset + high - start]
                _fill(part.transpose(0, 2, 1) if self.turned else part, chunk, low, high)
            offset += len(chunk.shapes)
        return out

    def sample(self) -> bytes:
        """The first, the last, and evenly spaced adapters between them, with the shapes of all."""
        n = len(self.shapes)
        picked = np.unique(np.linspace(0, n - 1, _SAMPLES).astype(np.int64)).tolist()
        shapes = self.shapes[:1] if self.uniform else self.shapes
        return b"".join([shapes.tobytes(), *(self.padded(i, i + 1).tobytes() for i in picked)])


def _fill(out: Float32[np.ndarray, "n rows cols"], chunk: _Chunk, low: int, high: int) -> None:
    starts = chunk.starts[low:high]
    for shape in np.unique(chunk.shapes[low:high], axis=0):
        rows, cols = shape.tolist()
        same = np.flatnonzero((chunk.shapes[low:high] == shape).all(axis=1))
        places = starts[same][:, None] + np.arange(rows * cols)
        out[same, :rows, :cols] = chunk.values[places].reshape(-1, rows, cols)


@dataclass(frozen=True)
class _Place:
    """Where a chunk lies, for error messages."""

    origin: str
    column: str
    row: int

    def refuse(self, what: str, remedy: str) -> LorabenchError:
        return LorabenchError(f"{self.origin}: column {self.column!r} {what}. {remedy}")


def _chunk(array: pa.Array, place: _Place, flat: Flat | None) -> _Chunk:
    """Descend through the levels of lists down to the numbers."""
    count = len(array)
    bounds: Any = np.arange(count + 1, dtype=np.int64)
    sizes: list[int | Int64[np.ndarray, " n"]] = []
    array = _storage(array)
    while is_nested(array.type):
        _refuse_nulls(array, place, level=len(sizes))
        lengths, array = _level(array)
        if isinstance(lengths, int):
            sizes.append(lengths)
            bounds = bounds * lengths
        else:
            sizes.append(_one_length_each(lengths, bounds, place))
            bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[bounds]
        array = _storage(array)
    if flat is not None and len(sizes) == 1:
        sizes = _unflattened(np.broadcast_to(sizes[0], count), flat, place)
    shapes = _shapes(sizes, count, place)
    return _Chunk(_numbers(array, place), shapes)


def _unflattened(lengths: Int64[np.ndarray, " n"], flat: Flat, place: _Place) -> list[int | Int64[np.ndarray, " n"]]:
    """Rows and columns of matrices of so many numbers, of which one side is known."""
    odd = np.flatnonzero(lengths % flat.size)
    if len(odd):
        raise place.refuse(
            f"has {lengths[odd[0]]} numbers in row {place.row + odd[0]}, no multiple of the rank {flat.size}",
            "Set dataset.rank to the rank of these adapters, or keep the rows of one rank.",
        )
    return [flat.size, lengths // flat.size] if flat.rows else [lengths // flat.size, flat.size]


def _shapes(sizes: list[int | Int64[np.ndarray, " n"]], count: int, place: _Place) -> Int64[np.ndarray, "n 2"]:
    if len(sizes) < 2:
        raise place.refuse(
            "holds no matrices",
            "A layer is a list of lists of float32 an adapter, or one list with dataset.rank=RANK; rename "
            "or remove this column.",
        )
    rows, cols = sizes[0], math.prod(sizes[1:])
    shapes = np.stack([np.broadcast_to(rows, count), np.broadcast_to(cols, count)], axis=1)
    if not shapes.all():
        row = place.row + int(np.flatnonzero(~shapes.all(axis=1))[0])
        raise place.refuse(f"is empty in row {row}", "Remove this row from the data set.")
    # A view that repeats one row: 128 columns of 100,000 adapters would else hold 200 MB of equal numbers.
    return np.broadcast_to(shapes[0], (count, 2)) if (shapes == shapes[0]).all() else shapes


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _refuse_nulls(array: pa.Array, place: _Place, level: int) -> None:
    if not array.null_count:
        return
    if level:
        raise place.refuse(f"holds {array.null_count} null rows of matrices", "Remove these adapters and start again.")
    missing = place.row + np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
    raise place.refuse(
        f"is missing in {len(missing)} adapters, the first in row {missing[0]}",
        "Every adapter needs every layer: remove these rows, or this column, from the data set.",
    )


def _level(array: pa.Array) -> tuple[int | Int64[np.ndarray, " lists"], pa.Array]:
    """The length of every list of one level (one number where they agree) and what the lists hold."""
    if pa.types.is_fixed_size_list(array.type):
        return int(array.type.list_size), array.flatten()
    offsets = array.offsets.to_numpy(zero_copy_only=True)
    read_ahead(offsets)
    size = int(offsets[1]) - int(offsets[0]) if len(offsets) > 1 else 0
    # In blocks, since the offsets of up layers take as much memory as their weights.
    for start in range(0, len(offsets) - 1, _BLOCK):
        if (np.diff(offsets[start : start + _BLOCK + 1]) != size).any():
            return np.diff(offsets).astype(np.int64), array.flatten()
    return size, array.flatten()


def _one_length_each(
    lengths: Int64[np.ndarray, " lists"], bounds: Int64[np.ndarray, " n_plus_1"], place: _Place
) -> Int64[np.ndarray, " n"]:
    """The common length of each adapter's lists."""
    if (np.diff(bounds) == 0).any():
        row = place.row + int(np.flatnonzero(np.diff(bounds) == 0)[0])
        raise place.refuse(f"is empty in row {row}", "Remove this row from the data set.")
    low = np.minimum.reduceat(lengths, bounds[:-1])
    ragged = np.flatnonzero(low != np.maximum.reduceat(lengths, bounds[:-1]))
    if len(ragged):
        raise place.refuse(
            f"has lists of unequal length in row {place.row + ragged[0]}, so it is no matrix",
            "Remove this row from the data set, or write it again from the adapter's file.",
        )
    return low


def _numbers(array: pa.Array, place: _Place) -> np.ndarray:
    if not pa.types.is_floating(array.type):
        raise place.refuse(f"holds {array.type}", "A layer holds float32 (or float16, float64).")
    if array.null_count:
        raise place.refuse(f"holds {array.null_count} null weights", "Remove these adapters.")
    return np.asarray(array.to_numpy(zero_copy_only=True))
