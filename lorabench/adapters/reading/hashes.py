"""The hashes that trainers leave in a safetensors file, recomputed from its bytes without torch."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lorabench.adapters.reading.header import Header, TensorInfo, explain_reading
from lorabench.errors import LorabenchError

__all__ = ["HASH_KEYS", "NOTHING", "CheckedHash", "check_hashes", "header_text", "sshs_hashes", "sshs_hashes_of"]

HASH_KEYS = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""Metadata entries that `check_hashes` holds against the file."""

NOTHING = hashlib.sha256(b"").hexdigest()
"""The hash of no bytes."""

# safetensors (0.8) puts tensors down from the last of these types to the first, and by name within one.
_RANK = {
    dtype: rank
    for rank, dtype in enumerate(
        (
            "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ",
            "F8_E5M2FNUZ", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64",
        )
    )
}  # fmt: skip
_LEGACY = (0x100000, 0x110000)
_CHUNK = 1 << 20

_Read = Callable[[int, int], "bytes | memoryview[int]"]
_Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class CheckedHash:
    """A hash that a file bears.

    Attributes:
        stored: as the metadata says.
        found: as its bytes say.
        ok: whether they agree; None where that cannot be told (see `check_hashes`).
    """

    stored: str
    found: str
    ok: bool | None


def sshs_hashes(header: Header) -> dict[str, str]:
    """`sshs_model_hash` and `sshs_legacy_hash` of a safetensors file, as kohya's sd-scripts computes them.

    Both are of the file as safetensors would write it with the metadata `ss_*` alone, so that a title given later
    changes neither: the sha256 of all bytes after the header, and the first 8 hex digits of the sha256 of bytes
    0x100000 to 0x110000. The file is read once, a mebibyte at a time.

    Args:
        header: of the file; its metadata may be another than the file's, for a file that is about to be written.

    Raises:
        LorabenchError: the file cannot be read.
    """
    with _reading(header) as read:
        ranges = _serialised(header.tensors)
        legacy = _legacy(header.tensors, _of_training(header.metadata), ranges, read, padded=True)
        return {"sshs_model_hash": _sha256(ranges, read), "sshs_legacy_hash": legacy}


def sshs_hashes_of(data: bytes) -> dict[str, str]:
    """The same of a whole safetensors file in memory.

    Raises:
        LorabenchError: `data` is none.
    """
    length = int.from_bytes(data[:8], "little")
    try:
        known: dict[str, Any] = json.loads(data[8 : 8 + length])
        metadata: Mapping[str, str] = known.pop("__metadata__", None) or {}
        tensors = {
            key: TensorInfo(tuple(entry["shape"]), entry["dtype"], *(8 + length + at for at in entry["data_offsets"]))
            for key, entry in known.items()
        }
        view = memoryview(data)
        ranges = _serialised(tensors)
        legacy = _legacy(tensors, _of_training(metadata), ranges, lambda start, stop: view[start:stop], padded=True)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LorabenchError(f"data: {len(data)} bytes came that are no safetensors file ({error}).") from error
    return {"sshs_model_hash": _sha256(ranges, lambda start, stop: view[start:stop]), "sshs_legacy_hash": legacy}


def check_hashes(header: Header) -> dict[str, CheckedHash]:
    """Every hash of `HASH_KEYS` that a file bears, held against its bytes.

    The legacy hash depends on the length of the header, which safetensors pads to 8 bytes since version 0.3: either
    length is taken for right. Where the header is longer than a mebibyte it depends on the order of the metadata
    too, which safetensors leaves to chance: then nothing can be told.

    Raises:
        LorabenchError: the file cannot be read.
    """
    stored = {key: header.metadata[key] for key in HASH_KEYS if key in header.metadata}
    if not stored:
        return {}
    ranges = _serialised(header.tensors)
    training = _of_training(header.metadata)
    checked = {}
    with _reading(header) as read:
        if "sshs_model_hash" in stored:
            checked["sshs_model_hash"] = _compare(stored["sshs_model_hash"], (_sha256(ranges, read),))
        if "sshs_legacy_hash" in stored:
            found = [_legacy(header.tensors, training, ranges, read, padded) for padded in (True, False)]
            by_chance = 8 + len(header_text({}, training)) > _LEGACY[0]
            checked["sshs_legacy_hash"] = _compare(stored["sshs_legacy_hash"], found, by_chance)
        if "modelspec.hash_sha256" in stored:
            whole = "0x" + _sha256([(header.data, header.size)], read)
            given = stored["modelspec.hash_sha256"]
            checked["modelspec.hash_sha256"] = _compare(given, (whole, whole.removeprefix("0x")))
    return checked


def header_text(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None, start: int = 0) -> bytes:
    """The JSON of a safetensors header, as safetensors writes it but for the order of the metadata; not padded.

    Args:
        tensors: in the order to name them in.
        metadata: None: the header shall name none.
        start: the offset that counts as 0.

    Raises:
        LorabenchError: a name or a value is no text that UTF-8 can express.
    """
    said: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    for key, info in tensors.items():
        said[key] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start - start, info.stop - start],
        }
    try:
        return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        text = error.object[max(error.start - 20, 0) : error.end]
        raise LorabenchError(
            f"metadata: {text!r} holds half a character, which a safetensors header cannot say. Set it anew."
        ) from error


@contextmanager
def _reading(header: Header) -> Iterator[_Read]:
    """A function that gives the file's bytes from one place to another."""
    with explain_reading(header.path), header.path.open("rb") as file:

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            found = file.read(stop - start)
            if len(found) != stop - start:
                raise LorabenchError(f"{header.path}: the file was cut while it was read. Try again.")
            return found

        yield read


def _of_training(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key.startswith("ss_")}


def _order(tensors: Mapping[str, TensorInfo]) -> list[str]:
    return sorted(tensors, key=lambda key: (-_RANK[tensors[key].dtype], key))


def _serialised(tensors: Mapping[str, TensorInfo]) -> list[tuple[int, int]]:
    """Where the bytes lie, in the order in which safetensors would write them; neighbours joined."""
    ranges: list[tuple[int, int]] = []
    for key in _order(tensors):
        start, stop = tensors[key].start, tensors[key].stop
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], stop)
        else:
            ranges.append((start, stop))
    return ranges


def _sha256(ranges: _Ranges, read: _Read) -> str:
    found = hashlib.sha256()
    for start, stop in ranges:
        for at in range(start, stop, _CHUNK):
            found.update(read(at, min(at + _CHUNK, stop)))
    return found.hexdigest()


def _legacy(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], ranges: _Ranges, read: _Read, padded: bool
) -> str:
    moved, at = {}, 0
    for key in _order(tensors):
        info = tensors[key]
        moved[key] = TensorInfo(info.shape, info.dtype, at, at + info.stop - info.start)
        at = moved[key].stop
    head = header_text(moved, metadata)
    head += b" " * (-len(head) % 8 if padded else 0)
    head = len(head).to_bytes(8, "little") + head
    found = hashlib.sha256(head[slice(*_LEGACY)])
    for chunk in _window(ranges, read, *(max(at - len(head), 0) for at in _LEGACY)):
        found.update(chunk)
    return found.hexdigest()[:8]


def _window(ranges: _Ranges, read: _Read, first: int, last: int) -> Iterator["bytes | memoryview[int]"]:
    """Bytes `first` to `last` of the joined ranges."""
    at = 0
    for start, stop in ranges:
        begin, end = max(first - at, 0), min(last - at, stop - start)
        if begin < end:
            yield read(start + begin, start + end)
        at += stop - start


def _compare(stored: str, found: Sequence[str], by_chance: bool = False) -> CheckedHash:
    same = stored.strip().lower() in found
    return CheckedHash(stored, found[0], True if same else None if by_chance else False)
