"""The tensors in a file that someone else made, or one clear message about what is wrong with the file."""

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorabench.errors import LorabenchError

__all__ = [
    "ADAPTER_SUFFIXES",
    "FOLDER_FILES",
    "Container",
    "find_adapter_file",
    "read_container",
    "read_json",
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

_AGAIN = "Download or export the file again."
_MAX_HEADER = 100_000_000
# What torch.load raises on bytes that are no checkpoint, or on one that holds more than tensors.
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Container:
    """Tensors and metadata of one file, in the file's order.

    `leftovers` are the keys whose value is no tensor.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    leftovers: tuple[str, ...] = ()


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


def read_container(path: Path) -> Container:
    """Read the tensors of a .safetensors, .bin, .pt or .pth file; pickles by `weights_only=True` alone.

    Raises:
        LorabenchError: the file is missing, empty, truncated, misnamed, a git-LFS pointer or not readable.
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
        raise LorabenchError(f"{path}: the file is empty, its download or its writing was interrupted. {_AGAIN}")
    if start.startswith(b"version https://git-lfs"):
        raise LorabenchError(
            f"{path}: this is a git-LFS pointer, not the adapter itself. Fetch the file with `git lfs pull`."
        )
    named, is_one = path.suffix == ".safetensors", _is_safetensors(start, size)
    if named:
        return _read_safetensors(path, size, None if is_one else _looks_like(start))
    if is_one:
        raise LorabenchError(f"{path}: this is a safetensors file. Rename it to end in .safetensors.")
    return _read_pickle(path, _looks_like(start))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where the file does not exist.

    Raises:
        LorabenchError: the file holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LorabenchError(f"{path}: not valid JSON ({error}). Repair it, or take it away.") from error
    if not isinstance(found, dict):
        raise LorabenchError(f"{path}: a JSON object is expected, a {type(found).__name__} came. Repair it.")
    return found


def _is_safetensors(start: bytes, size: int) -> bool:
    """Whether the file begins with a length that fits into it, and then with JSON."""
    return int.from_bytes(start[:8], "little") <= size - 8 and start[8:9] == b"{"


def _read_safetensors(path: Path, size: int, kind: str | None) -> Container:
    if kind:
        raise LorabenchError(f"{path}: this is {kind}, not a safetensors file. {_rename(kind)}")
    _check_header(path, size)
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            return Container(tensors, file.metadata() or {})
    except (SafetensorError, RuntimeError, AttributeError, KeyError) as error:
        raise LorabenchError(f"{path}: not a valid safetensors file ({error}). {_AGAIN}") from error


def _check_header(path: Path, size: int) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MAX_HEADER):
            raise LorabenchError(f"{path}: no safetensors header, or the file is truncated ({size} bytes). {_AGAIN}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        entries = [value for key, value in header.items() if key != "__metadata__"]
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError) as error:
        raise LorabenchError(f"{path}: the safetensors header is damaged ({type(error).__name__}). {_AGAIN}") from error
    if end > size:
        raise LorabenchError(f"{path}: the file is truncated, {size} of {end} bytes are there. {_AGAIN}")


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


def _read_pickle(path: Path, kind: str | None) -> Container:
    if kind is not None and "torch.save" not in kind:
        raise LorabenchError(f"{path}: this is {kind}, not a checkpoint of torch.save. {_rename(kind)}")
    try:
        with warnings.catch_warnings():
            # It warns of pickle protocols that it may not know; what it does not know, it refuses.
            warnings.simplefilter("ignore", UserWarning)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except _PICKLE_ERRORS as error:
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise LorabenchError(
            f"{path}: damaged, or holds more than tensors, so it was not read ({reason}). "
            "Pickles are never run; ask for the adapter as safetensors."
        ) from error
    return _from_pickle(path, found)


def _from_pickle(path: Path, found: object) -> Container:
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if isinstance(found, list) and found and all(map(_is_dense, found)):
        if len(found) % 2:
            raise LorabenchError(
                f"{path}: a list of {len(found)} tensors; up and down must alternate, so one is missing. {_AGAIN}"
            )
        # cloneofsimo names a text encoder's file *.text_encoder.pt; up comes before down.
        model = "text_encoder" if ".text_encoder" in path.name else "unet"
        named = {f"{model}:{i // 2}:{('up', 'down')[i % 2]}": value.detach() for i, value in enumerate(found)}
        return Container(named, {})
    if not isinstance(found, dict):
        raise LorabenchError(
            f"{path}: holds a {type(found).__name__}; a mapping of names to tensors, or cloneofsimo's "
            "list of tensors, is expected. Save the adapter's state dict alone."
        )
    tensors = {str(key): value.detach() for key, value in found.items() if _is_dense(value)}
    return Container(tensors, {}, tuple(str(key) for key in found if str(key) not in tensors))


def _is_dense(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
