"""What only the weights say: NaN, infinity, and modules that were never trained. Torch reads pickles alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabench.adapters.kinds.base import BESIDE
from lorabench.adapters.reading.header import Header, TensorInfo, explain_reading
from lorabench.adapters.reading.table import Table
from lorabench.errors import LorabenchError

__all__ = ["ValueReport", "read_values"]

_CHUNK = 1 << 22
"""Bytes that are read at once."""
# Without its sign, a float of these is an integer: below infinity's it is finite, above it NaN.
_INFINITIES = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)}
# Of one byte: those that are 0, infinite, and NaN (Micikevicius et al. 2022; NaN is -0 in the FNUZ types).
_BYTES: dict[str, tuple[set[int], set[int], set[int]]] = {
    "F8_E4M3": ({0x00, 0x80}, set(), {0x7F, 0xFF}),
    "F8_E5M2": ({0x00, 0x80}, {0x7C, 0xFC}, {0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF}),
    "F8_E4M3FNUZ": ({0x00}, set(), {0x80}),
    "F8_E5M2FNUZ": ({0x00}, set(), {0x80}),
    "F8_E8M0": (set(), set(), {0xFF}),
}


@dataclass
class ValueReport:
    """What the weights of a file hold.

    Attributes:
        nan: keys of tensors with NaN.
        infinite: keys of tensors with an infinite value.
        untrained: modules whose ΔW is zero since one of their factors is.
    """

    nan: list[str] = field(default_factory=list)
    infinite: list[str] = field(default_factory=list)
    untrained: list[str] = field(default_factory=list)


@dataclass
class _Values:
    """Whether any value of a tensor is NaN, infinite, not zero."""

    nan: bool = False
    infinite: bool = False
    nonzero: bool = False


def read_values(table: Table) -> ValueReport:
    """Which tensors of a file hold NaN or infinity, and which modules' ΔW is zero since one of their factors is.

    What float32 cannot hold counts as infinite, or as 0. A safetensors file is read some mebibytes at a time, and no
    number is converted.

    Args:
        table: of the file.

    Raises:
        LorabenchError: its weights cannot be read.
    """
    report, zeros = ValueReport(), set()
    for key, values in _each(table):
        if values.nan:
            report.nan.append(key)
        if values.infinite:
            report.infinite.append(key)
        if not values.nonzero:
            zeros.add(key)
    factors = ((row, {key for part, key in row.keys.items() if part not in BESIDE}) for row in table.rows)
    report.untrained = [row.module for row, keys in factors if keys & zeros]
    return report


def _each(table: Table) -> Iterator[tuple[str, _Values]]:
    if table.header is not None:
        yield from _of_safetensors(table.header)
    elif table.format == "npz":
        with np.load(table.file, allow_pickle=False) as arrays:
            for key in arrays.files:
                array = arrays[key]
                if array.dtype.kind == "f":
                    yield key, _of_floats(array.ravel(), _Values())
    else:
        yield from _of_pickle(table)


def _of_safetensors(header: Header) -> Iterator[tuple[str, _Values]]:
    with explain_reading(header.path), header.path.open("rb") as file:
        for key, info in header.tensors.items():
            if info.dtype in _INFINITIES or info.dtype in _BYTES or info.dtype == "F64":
                values = _Values()
                for start in range(info.start, info.stop, _CHUNK):
                    file.seek(start)
                    chunk = file.read(min(_CHUNK, info.stop - start))
                    if len(chunk) != min(_CHUNK, info.stop - start):
                        raise LorabenchError(f"{header.path}: the file was cut while it was read. Try again.")
                    _of_chunk(chunk, info, values)
                yield key, values


def _of_chunk(chunk: bytes, info: TensorInfo, values: _Values) -> None:
    """Add what a piece of a tensor holds."""
    if info.dtype in _BYTES:
        zero, infinite, nan = _BYTES[info.dtype]
        held = set(np.flatnonzero(np.bincount(np.frombuffer(chunk, np.uint8), minlength=256)).tolist())
        values.nan |= bool(held & nan)
        values.infinite |= bool(held & infinite)
        values.nonzero |= bool(held - zero)
    elif info.dtype == "F64":
        _of_floats(np.frombuffer(chunk, "<f8"), values)
    else:
        integer, infinity = _INFINITIES[info.dtype]
        bits = np.frombuffer(chunk, integer)
        magnitude = bits & bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
        largest = int(magnitude.max())
        values.nonzero |= largest > 0
        if largest >= infinity:
            values.nan |= largest > infinity
            values.infinite |= bool((magnitude == infinity).any())


def _of_floats(numbers: NDArray[Any], values: _Values) -> _Values:
    with np.errstate(over="ignore", under="ignore"):
        floats = numbers.astype(np.float32, copy=False)
    values.nan |= bool(np.isnan(floats).any())
    values.infinite |= bool(np.isinf(floats).any())
    values.nonzero |= bool(floats.any())
    return values


def _of_pickle(table: Table) -> Iterator[tuple[str, _Values]]:
    import torch

    from lorabench.adapters.reading.container import read_container

    for key, tensor in read_container(table.file).tensors.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float4_e2m1fn_x2:
            yield key, _of_floats(tensor.to(torch.float32).numpy().ravel(), _Values())
