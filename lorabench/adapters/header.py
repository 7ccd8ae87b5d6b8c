"""What the first bytes of an adapter file say, without torch and without its weights."""

import json
import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.errors import LorabenchError

__all__ = [
    "ADAPTER_SUFFIXES",
    "AGAIN",
    "DTYPE_BYTES",
    "FOLDER_FILES",
    "Header",
    "TensorInfo",
    "find_adapter_file",
    "first_look",
    "read_header",
    "read_json",
    "read_scalars",
]

ADAPTER_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
FOLDER_FILES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapters.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
)
"""Names that PEFT, diffusers and MLX give to the one adapter of a folder, the first that exists is read."""
AGAIN = "Download or export the file again."
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one entry, by safetensors' names."""

_MAX_HEADER = 100_000_000  # safetensors' own limit


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


def find_adapter_file(path: Path) -> Path:
    """The adapter file at `path`: the path itself, or the adapter of a PEFT, diffusers or MLX folder.

    Raises:
        LorabenchError: nothing is there, or the folder is not one adapter.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise LorabenchError(f"{path}: no such file or folder. Check the spelling of the path.")
    known = [path / name for name in FOLDER_FILES if (path / name).is_file()]
    found = known[:1] or sorted(file for file in path.iterdir() if file.suffix in ADAPTER_SUFFIXES and file.is_file())
    if len(found) == 1:
        return found[0]
    held = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
    raise LorabenchError(
        f"{path}: this folder is not one adapter, it holds {held}. "
        f"Name one file, or a folder with one of {', '.join(FOLDER_FILES)}."
    )


def first_look(path: Path) -> tuple[int, str | None]:
    """Size of an adapter file, and what it is if it is no safetensors file (None if it is one).

    Raises:
        LorabenchError: the file is missing, empty, misnamed, a git-LFS pointer, or neither safetensors nor
            of torch.save.
    """
    if path.suffix not in ADAPTER_SUFFIXES:
        raise LorabenchError(f"{path}: adapter files end in {', '.join(ADAPTER_SUFFIXES)}, not in {path.suffix!r}.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise LorabenchError(
            f"{path}: cannot be read ({error.strerror}). Check the path and its permissions."
        ) from error
    if size == 0:
        raise LorabenchError(f"{path}: the file is empty, its download or its writing was interrupted. {AGAIN}")
    if start.startswith(b"version https://git-lfs"):
        raise LorabenchError(
            f"{path}: this is a git-LFS pointer, not the adapter itself. Fetch the file with `git lfs pull`."
        )
    is_one = int.from_bytes(start[:8], "little") <= size - 8 and start[8:9] == b"{"
    kind = None if is_one else _looks_like(start)
    if path.suffix == ".safetensors":
        if kind:
            raise LorabenchError(f"{path}: this is {kind}, not a safetensors file. {_rename(kind)}")
        return size, None
    if is_one:
        raise LorabenchError(f"{path}: this is a safetensors file. Rename it to end in .safetensors.")
    if kind is not None and "torch.save" not in kind:
        raise LorabenchError(f"{path}: this is {kind}, not a checkpoint of torch.save. {_rename(kind)}")
    return size, kind or "a file of torch.save"


def read_header(path: Path) -> Header:
    """The header of a safetensors file, every number of it held against the file before it is used.

    Raises:
        LorabenchError: the file is no safetensors file, or is damaged or truncated.
    """
    size, kind = first_look(path)
    if kind is not None:
        raise LorabenchError(f"{path}: this is {kind}; only a safetensors file has a header that can be read alone.")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MAX_HEADER):
            raise LorabenchError(f"{path}: no safetensors header, or the file is truncated ({size} bytes). {AGAIN}")
        raw = file.read(length)
    try:
        known = json.loads(raw, object_pairs_hook=_once)
        metadata = known.pop("__metadata__", None) or {}
        tensors = {key: _info(key, entry, 8 + length) for key, entry in known.items()}
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError) as error:
        raise LorabenchError(f"{path}: the safetensors header is damaged ({_reason(error)}). {AGAIN}") from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise LorabenchError(f"{path}: the safetensors header is damaged (metadata that is no text). {AGAIN}")
    end = 8 + length
    for key, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.stop > size:
            raise LorabenchError(f"{path}: the file is truncated, {size} of {_end(tensors)} bytes are there. {AGAIN}")
        if info.start != end:
            raise LorabenchError(
                f"{path}: the safetensors header is damaged (the bytes of {key} overlap or leave a hole). {AGAIN}"
            )
        end = info.stop
    if end != size:
        raise LorabenchError(f"{path}: {size - end} bytes follow the last tensor, so the file is damaged. {AGAIN}")
    return Header(path, size, tensors, metadata, 8 + length)


def read_scalars(header: Header, keys: Collection[str]) -> dict[str, float]:
    """The first number of some floating-point tensors, such as `.alpha`, without torch; empty tensors are left out.

    Raises:
        LorabenchError: one is of a type that is no floating-point number.
    """
    found = {}
    with header.path.open("rb") as file:
        for key in keys:
            info = header.tensors[key]
            if info.count == 0:
                continue
            if info.dtype not in ("F64", "F32", "F16", "BF16"):
                raise LorabenchError(
                    f"{header.path}: {key} is stored as {info.dtype}; a floating-point number is needed."
                )
            file.seek(info.start)
            raw = file.read(DTYPE_BYTES[info.dtype])
            # bfloat16 is the upper half of a float32
            raw, code = (b"\0\0" + raw, "f") if info.dtype == "BF16" else (raw, {8: "d", 4: "f", 2: "e"}[len(raw)])
            found[key] = float(struct.unpack("<" + code, raw)[0])
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where the file does not exist.

    Raises:
        LorabenchError: the file holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise LorabenchError(f"{path}: not valid JSON ({error}). Repair it, or take it away.") from error
    except OSError as error:
        raise LorabenchError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from error
    if not isinstance(found, dict):
        raise LorabenchError(f"{path}: a JSON object is expected, a {type(found).__name__} came. Repair it.")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _info(key: str, entry: Mapping[str, Any], data: int) -> TensorInfo:
    shape, dtype, offsets = tuple(entry["shape"]), entry["dtype"], entry["data_offsets"]
    numbers = (*shape, *offsets)
    if len(offsets) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(f"shape or place of {key}")
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"type {dtype!r} of {key}")
    info = TensorInfo(shape, dtype, data + offsets[0], data + offsets[1])
    if info.count * DTYPE_BYTES[dtype] != info.stop - info.start:
        raise ValueError(f"{key} has {info.stop - info.start} bytes, and its shape needs another number")
    return info


def _end(tensors: Mapping[str, TensorInfo]) -> int:
    return max(info.stop for info in tensors.values())


def _reason(error: Exception) -> str:
    return str(error)[:160] if type(error) is ValueError else type(error).__name__


def _looks_like(start: bytes) -> str | None:
    text = start.lstrip()
    if start.startswith(b"PK"):
        return "a zip archive, as torch.save writes it"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle, as older torch.save wrote it"
    if start.startswith(b"GGUF"):
        return "a GGUF file"
    if text[:1] in (b"{", b"["):
        return "JSON text"
    if text[:1] == b"<":
        return "a web page or XML text"
    return None


def _rename(kind: str) -> str:
    if "torch.save" in kind:
        return "Rename it to end in .bin or .pt if it holds an adapter's tensors."
    return "Get the adapter file itself (its download may have saved something else)."
