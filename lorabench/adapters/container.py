"""The tensors in a file that someone else made, or one clear message about what is wrong with the file."""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorabench.adapters.header import AGAIN, first_look, read_header
from lorabench.errors import LorabenchError

__all__ = ["Container", "read_container"]

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


def read_container(path: Path) -> Container:
    """Read the tensors of a .safetensors, .bin, .pt or .pth file; pickles by `weights_only=True` alone.

    Raises:
        LorabenchError: the file is missing, empty, truncated, misnamed, a git-LFS pointer or not readable.
    """
    _, kind = first_look(path)
    return _read_safetensors(path) if kind is None else _read_pickle(path)


def _read_safetensors(path: Path) -> Container:
    header = read_header(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in header.tensors}
            return Container(tensors, header.metadata)
    except (SafetensorError, RuntimeError, AttributeError, KeyError) as error:
        raise LorabenchError(f"{path}: not a valid safetensors file ({error}). {AGAIN}") from error


def _read_pickle(path: Path) -> Container:
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
                f"{path}: a list of {len(found)} tensors; up and down must alternate, so one is missing. {AGAIN}"
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
