"""The header of a safetensors file, without torch and without its weights."""

import json
import math
import os
import re
import reprlib
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Never, TypeGuard

from lorabench.adapters.reading.opening import (
    ADAPTER_SUFFIXES,
    AGAIN,
    FOLDER_FILES,
    explain_reading,
    find_adapter_file,
    first_look,
    parse_json,
    read_json,
)
from lorabench.errors import LorabenchError

__all__ = [
    "ADAPTER_SUFFIXES",
    "AGAIN",
    "DTYPE_BITS",
    "FOLDER_FILES",
    "Header",
    "TensorInfo",
    "explain_reading",
    "find_adapter_file",
    "first_look",
    "parse_header",
    "parse_json",
    "read_header",
    "read_json",
    "read_scalars",
]

DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E5M2": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Bits of one entry, by safetensors' names."""

_MAX_HEADER = 100_000_000  # bytes, safetensors' own limit
_MAX_DIMENSIONS = 64  # as NumPy and torch's kernels; the product of a million huge ones would take for ever
_MAX_BYTES = 2**63  # torch counts bytes in int64
_INT = frozenset({int})
_CODES = {
    "F64": "d", "F32": "f", "F16": "e", "BF16": "f",
    "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U64": "Q", "U32": "I", "U16": "H", "U8": "B",
}  # fmt: skip
"""How `struct` calls what it reads."""
_SMALL = {"F8_E4M3": (3, 7), "F8_E4M3FNUZ": (3, 8), "F8_E5M2": (2, 15), "F8_E5M2FNUZ": (2, 16)}
"""Bits of the mantissa, and what the exponent is biased by (Micikevicius et al. 2022)."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape, type (by safetensors' names) and where a tensor's bytes lie in the file; -1 for those of a pickle."""

    shape: tuple[int, ...]
    dtype: str
    start: int = -1
    stop: int = -1

    @property
    def count(self) -> int:
        """Entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says before its weights.

    Attributes:
        path: the file.
        size: its length in bytes.
        tensors: key -> shape, type and place, in the file's order.
        metadata: strings that the writer left.
        data: where the tensors' bytes begin.
    """

    path: Path
    size: int
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data: int


def read_header(path: Path) -> Header:
    """The header of a safetensors file, every number of it held against the file before it is used.

    Raises:
        LorabenchError: the file is no safetensors file, or is damaged or truncated.
    """
    _, kind = first_look(path)
    if kind is not None:
        raise LorabenchError(f"{path}: this is {kind}; only a safetensors file has a header that can be read alone.")
    with explain_reading(path), path.open("rb") as file:
        return parse_header(path, file)


def parse_header(path: Path, file: BinaryIO) -> Header:
    """The header of an open safetensors file, for a reader who goes on to its weights; see `read_header`.

    What is accepted is what the safetensors library accepts, less: a key that stands twice (of which two readers may
    take two different ones), over 64 dimensions, sizes that no tensor can have (over 2^63 bytes if the dimensions of
    0 were 1), and entries as lists, which the library takes by accident. -0 counts as 0.

    Args:
        path: its name, for messages.
        file: the file, at its first byte.

    Raises:
        LorabenchError: it is no safetensors file, or is damaged or truncated.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    data = 8 + length
    if length > _MAX_HEADER or data > size:
        raise LorabenchError(f"{path}: no safetensors header, or the file is truncated ({size} bytes). {AGAIN}")
    try:
        entries = _parse_json(file.read(length))
        metadata = _texts(entries.pop("__metadata__", None))
        tensors = {key: _info(key, entry, data) for key, entry in entries.items()}
    except (ValueError, RecursionError) as error:
        raise LorabenchError(f"{path}: the safetensors header is damaged ({_reason(error)}). {AGAIN}") from error
    _check_places(path, tensors, data, size)
    return Header(path, size, tensors, metadata, data)


def read_scalars(header: Header, keys: Collection[str]) -> dict[str, float]:
    """The first number of some tensors, such as `.alpha`, without torch; empty tensors are left out.

    Raises:
        LorabenchError: one is of a type that is no plain number (complex, boolean, under 8 bits), or the file was cut
            since its header was read.
    """
    found = {}
    with explain_reading(header.path), header.path.open("rb") as file:
        for key in keys:
            info = header.tensors[key]
            if info.count == 0:
                continue
            if info.dtype not in _CODES and info.dtype not in _SMALL:
                raise LorabenchError(f"{header.path}: {key} is stored as {info.dtype}; a plain number is needed.")
            file.seek(info.start)
            raw = file.read(DTYPE_BITS[info.dtype] // 8)
            if len(raw) * 8 != DTYPE_BITS[info.dtype]:
                raise LorabenchError(f"{header.path}: the file was cut while it was read. Read it again.")
            found[key] = _number(info.dtype, raw)
    return found


def _number(dtype: str, raw: bytes) -> float:
    if dtype in _CODES:
        # bfloat16 is the upper half of a float32
        return float(struct.unpack("<" + _CODES[dtype], b"\0\0" + raw if dtype == "BF16" else raw)[0])
    mantissa, bias = _SMALL[dtype]
    sign, exponent, rest = raw[0] >> 7, (raw[0] & 127) >> mantissa, raw[0] & (2**mantissa - 1)
    if dtype == "F8_E5M2" and exponent == 31:
        size = math.nan if rest else math.inf
    elif (dtype == "F8_E4M3" and raw[0] & 127 == 127) or (dtype.endswith("FNUZ") and raw[0] == 128):
        size = math.nan
    else:
        size = math.ldexp(rest / 2**mantissa + (exponent > 0), max(exponent, 1) - bias)
    return -size if sign else size


def _parse_json(raw: bytes) -> dict[str, Any]:
    text = raw.decode()
    found = json.loads(text, object_pairs_hook=_once, parse_float=_no_number, parse_constant=_no_number)
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}, no object")  # noqa: TRY004 - the file is wrong, not a type here
    if re.search(r"\\u[dD][89a-fA-F]", text):  # half of a pair of surrogates is no text, and cannot be printed
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _no_number(text: str) -> Never:
    raise ValueError(f"{text[:24]} is no whole number")


def _texts(metadata: object) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ is no object of texts")
    return metadata


def _info(key: str, entry: object, data: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise ValueError(f"{key} is no object")  # noqa: TRY004 - the file is wrong, not a type here
    dtype, shape, place = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"{key} is of an unknown type, {reprlib.repr(dtype)}")
    if not _are_whole(shape) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{key} has no shape, but {reprlib.repr(shape)}")
    if not _are_whole(place) or len(place) != 2:
        raise ValueError(f"{key} has no place, but {reprlib.repr(place)}")
    count, width = math.prod(shape), DTYPE_BITS[dtype]
    if (count or math.prod(filter(None, shape))) * width >= 8 * _MAX_BYTES:
        raise ValueError(f"{key} has an absurd shape, {reprlib.repr(shape)}")
    start, stop = place
    if count * width != 8 * (stop - start):
        needed = f"{dtype} of shape {reprlib.repr(shape)} needs {count * width / 8:g}"
        raise ValueError(f"{key} has {stop - start} bytes, {needed}")
    return TensorInfo(tuple(shape), dtype, data + start, data + stop)


def _are_whole(numbers: object) -> TypeGuard[list[int]]:
    """Whether it is a list of whole numbers from 0 on, truths not among them."""
    return isinstance(numbers, list) and _INT.issuperset(map(type, numbers)) and min(numbers, default=0) >= 0


def _check_places(path: Path, tensors: Mapping[str, TensorInfo], data: int, size: int) -> None:
    """Refuse tensors that overlap, leave a hole, or do not end where the file ends."""
    end = data
    for key, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != end:
            raise LorabenchError(
                f"{path}: the safetensors header is damaged (the bytes of {key} overlap or leave a hole). {AGAIN}"
            )
        end = info.stop
    if end > size:
        raise LorabenchError(f"{path}: the file is truncated, {size} of {end} bytes are there. {AGAIN}")
    if end < size:
        raise LorabenchError(f"{path}: {size - end} bytes follow the last tensor, so the file is damaged. {AGAIN}")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
