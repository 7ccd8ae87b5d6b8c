"""What is at a path, and its first bytes; JSON beside it. Nothing here needs torch."""

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorabench.errors import LorabenchError

__all__ = [
    "ADAPTER_SUFFIXES",
    "AGAIN",
    "FOLDER_FILES",
    "explain_reading",
    "find_adapter_file",
    "first_look",
    "parse_json",
    "read_json",
]

ADAPTER_SUFFIXES = (".safetensors", ".npz", ".bin", ".pt", ".pth")
FOLDER_FILES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapters.safetensors",
    "adapters.npz",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
)
"""Names that PEFT, diffusers and MLX give to the one adapter of a folder, the first that exists is read."""
AGAIN = "Download or export the file again."

_MAX_JSON = 32_000_000  # bytes; configurations have some thousand, the logs of long trainings some million
_MAX_DEPTH = 100


def find_adapter_file(path: Path) -> Path:
    """The adapter file at `path`: the path itself, or the adapter of a PEFT, diffusers or MLX folder.

    Raises:
        LorabenchError: nothing is there, or the folder is not one adapter.
    """
    with explain_reading(path):
        if not path.is_dir():
            if path.exists():
                return path
            raise LorabenchError(f"{path}: no such file or folder. Check the spelling of the path.")
        files = sorted(file for file in path.iterdir() if file.is_file())
        known = [path / name for name in FOLDER_FILES if path / name in files]
        found = known[:1] or [file for file in files if file.suffix in ADAPTER_SUFFIXES]
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
    with explain_reading(path):
        size = _size(path)
        with path.open("rb") as file:
            start = file.read(64)
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
    if path.suffix == ".npz":
        if not start.startswith(b"PK"):
            raise LorabenchError(f"{path}: this is {kind or 'something else'}, not an archive of NumPy's. {AGAIN}")
        return size, "an archive of NumPy arrays"
    if kind is not None and "torch.save" not in kind:
        raise LorabenchError(f"{path}: this is {kind}, not a checkpoint of torch.save. {_rename(kind)}")
    return size, kind or "a file of torch.save"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where the file does not exist.

    Raises:
        LorabenchError: the file holds something else, or over 32 MB.
    """
    with explain_reading(path):
        try:
            size = _size(path)
        except FileNotFoundError:
            return {}
        if size > _MAX_JSON:
            raise LorabenchError(f"{path}: {size} bytes of JSON, {_MAX_JSON} are the most. Repair it.")
        raw = path.read_bytes()
    try:
        found = parse_json(raw.decode("utf-8-sig"))
    except ValueError as error:
        raise LorabenchError(f"{path}: not valid JSON ({error}). Repair it.") from error
    if not isinstance(found, dict):
        raise LorabenchError(f"{path}: a JSON object is expected, a {type(found).__name__} came. Repair it.")
    return found


def parse_json(text: str) -> Any:
    """JSON as anybody may have written it, NaN and infinity included.

    Raises:
        ValueError: it is no JSON, or nested so deeply that whoever goes through it may run out of stack.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level, depth = [found], 0
    while level:
        depth += 1
        level = [
            part
            for value in level
            if isinstance(value, dict | list)
            for part in (value.values() if isinstance(value, dict) else value)
        ]
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    return found


@contextmanager
def explain_reading(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to read `path` into one clear message.

    Raises:
        LorabenchError: it cannot be read.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise LorabenchError(f"{path}: cannot be read ({reason}). Check the path and its permissions.") from error


def _size(path: Path) -> int:
    """Bytes of a file; pipes and devices are refused before they are opened, which could wait for ever."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise LorabenchError(f"{path}: this is no file, but a folder, pipe or device. Name a file.")
    return found.st_size


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
