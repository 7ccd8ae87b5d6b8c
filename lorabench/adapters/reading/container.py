"""The tensors in a file that someone else made, or one clear message about what is wrong with the file."""

import io
import math
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from lorabench.adapters.reading.header import AGAIN, Header, TensorInfo, explain_reading, first_look, parse_header
from lorabench.errors import LorabenchError

__all__ = ["Container", "finite", "infos_of", "read_container", "read_tensor"]

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""By safetensors' names; of types under 8 bits torch can only keep packs."""

_NAMES = {dtype: name for name, dtype in _DTYPES.items()} | {torch.float4_e2m1fn_x2: "F4"}

_MAX_GROWTH = 16
"""How many times a pickle's own size its tensors may take: tied weights are stored once, bombs are stored small."""

_FOLDER = 0x10  # of a record's attributes in a zip archive

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

    Attributes:
        tensors: key -> tensor.
        metadata: strings that the writer left.
        leftovers: keys whose value is no tensor.
        format: "safetensors", "npz" or "pickle".
        header: of a safetensors file.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    leftovers: tuple[str, ...] = ()
    format: str = "pickle"
    header: Header | None = None


def read_container(path: Path) -> Container:
    """Read the tensors of a .safetensors, .bin, .pt or .pth file; pickles by `weights_only=True` alone.

    The weights are copied into memory, not mapped: whatever happens to the file later, they stay what they are.

    Raises:
        LorabenchError: the file is missing, empty, truncated, misnamed, a git-LFS pointer or not readable.
    """
    size, kind = first_look(path)
    if kind is None:
        return _read_safetensors(path)
    return _read_npz(path, size) if path.suffix == ".npz" else _read_pickle(path, size)


def infos_of(path: Path, container: Container) -> tuple[Mapping[str, TensorInfo], dict[str, float]]:
    """Shapes and types by safetensors' names, and the α tensors' values, of what has no header.

    Raises:
        LorabenchError: an α is no plain number.
    """
    tensors, alphas = {}, {}
    for key, tensor in container.tensors.items():
        name = str(tensor.dtype).removeprefix("torch.")
        dtype = _NAMES.get(tensor.dtype, name.replace("uint", "U").replace("int", "I").upper())
        tensors[key] = TensorInfo(tuple(tensor.shape), dtype)
        if key.endswith(("alpha", "_alpha")) and tensor.numel():
            if tensor.is_complex() or tensor.dtype == torch.bool:
                raise LorabenchError(f"{path}: {key} is stored as {dtype}; a plain number is needed. Export it again.")
            alphas[key] = float(tensor.flatten()[0])
    return tensors, alphas


def finite(where: Path, key: str, tensor: Tensor) -> Float32[Tensor, "..."]:
    """A stored tensor in float32.

    Raises:
        LorabenchError: it is quantised, or holds NaN or infinity.
    """
    if not tensor.is_floating_point() or tensor.dtype == torch.float4_e2m1fn_x2:  # two of 4 bits a byte
        raise LorabenchError(
            f"{where}: {key} is stored as {tensor.dtype}; quantised factors cannot be read. "
            "Export the adapter in float16, bfloat16 or float32."
        )
    values = tensor.to(torch.float32)
    if values.numel() and not all(map(math.isfinite, torch.aminmax(values))):  # NaN is the least and the largest
        raise LorabenchError(
            f"{where}: NaN or infinite values in {key} (a diverged training run leaves such files). "
            "Train again or take an earlier checkpoint."
        )
    return values


def _read_safetensors(path: Path) -> Container:
    with explain_reading(path), path.open("rb") as file:
        header = parse_header(path, file)
        tensors = {key: _read_tensor(path, file, key, info) for key, info in header.tensors.items()}
    return Container(tensors, header.metadata, format="safetensors", header=header)


def read_tensor(header: Header, key: str) -> Tensor:
    """One tensor of a safetensors file as it is stored; nothing else of the file is read.

    Raises:
        LorabenchError: it is of a type that is not read, or the file was cut since its header was read.
    """
    with explain_reading(header.path), header.path.open("rb") as file:
        return _read_tensor(header.path, file, key, header.tensors[key])


def _read_tensor(path: Path, file: io.BufferedReader, key: str, info: TensorInfo) -> Tensor:
    if info.dtype not in _DTYPES:
        raise LorabenchError(
            f"{path}: {key} is stored as {info.dtype}, which is not read. "
            "Export the adapter in float16, bfloat16 or float32."
        )
    raw = torch.empty(info.stop - info.start, dtype=torch.uint8)
    file.seek(info.start)
    if file.readinto(raw.numpy().data) != len(raw):
        raise LorabenchError(f"{path}: the file was cut while it was read. Read it again once it is whole.")
    return raw.view(_DTYPES[info.dtype]).reshape(info.shape)


def _read_npz(path: Path, size: int) -> Container:
    """MLX's archive of arrays; no object is unpickled, and no record is unpacked that is too large."""
    with explain_reading(path):
        file = io.BytesIO(path.read_bytes())
    try:
        _check_archive(path, size, file)
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        tensors = {key: torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for key, array in arrays.items()}
    except _PICKLE_ERRORS as error:
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise LorabenchError(
            f"{path}: damaged, or holds more than arrays of numbers, so it was not read ({reason}). {AGAIN}"
        ) from error
    return Container(tensors, {}, format="npz")


def _read_pickle(path: Path, size: int) -> Container:
    with explain_reading(path):
        # From memory: of a file on the disk torch would also take a tar archive, unpack it, and follow its links.
        file = io.BytesIO(path.read_bytes())
    try:
        with warnings.catch_warnings():
            # It warns of pickle protocols that it may not know; what it does not know, it refuses.
            warnings.simplefilter("ignore")
            zipped = file.read(4) == b"PK\x03\x04"  # as torch tells them apart
            if zipped:
                _check_archive(path, size, file)
            file.seek(0)
            container = _from_pickle(path, torch.load(file, map_location="cpu", weights_only=True))
            if not zipped:
                _check_filled(file, container.tensors)
    except _PICKLE_ERRORS as error:
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise LorabenchError(
            f"{path}: damaged, or holds more than tensors, so it was not read ({reason}). "
            "Pickles are never run; ask for the adapter as safetensors."
        ) from error
    _check_growth(path, size, (tensor.numel() * tensor.element_size() for tensor in container.tensors.values()))
    return container


def _check_archive(path: Path, size: int, file: io.BytesIO) -> None:
    """Refuse archives that unpack to much more, and records marked as folders, of which torch makes any bytes up."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    if any(record.external_attr & _FOLDER and record.file_size for record in records):
        raise zipfile.BadZipFile("a record is marked as a folder")
    _check_growth(path, size, (record.file_size for record in records))


def _check_filled(file: io.BytesIO, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors without values, which torch leaves as it found the memory.

    Before torch 1.6 a file was five pickles and then the values; the fifth pickle names the storages that have some.
    """
    file.seek(0)
    for _ in range(4):
        all(True for _ in pickletools.genops(file))
    named = {value for _, value, _ in pickletools.genops(file) if isinstance(value, str)}
    if len({tensor.untyped_storage().data_ptr() for tensor in tensors.values() if tensor.numel()}) > len(named):
        raise ValueError("there are no values for a tensor")


def _check_growth(path: Path, size: int, parts: Iterable[int]) -> None:
    grown = sum(parts)
    if grown > _MAX_GROWTH * size:
        raise LorabenchError(
            f"{path}: its {size} bytes unpack to {grown}, over {_MAX_GROWTH} times as many, so it was not read. "
            "Ask for the adapter as safetensors."
        )


def _from_pickle(path: Path, found: object) -> Container:
    found, metadata = _unnested(found)
    if isinstance(found, list) and found and all(map(_is_dense, found)):
        if len(found) % 2:
            raise LorabenchError(
                f"{path}: a list of {len(found)} tensors; up and down must alternate, so one is missing. {AGAIN}"
            )
        # cloneofsimo names a text encoder's file *.text_encoder.pt; up comes before down.
        model = "text_encoder" if ".text_encoder" in path.name else "unet"
        named = {f"{model}:{i // 2}:{('up', 'down')[i % 2]}": value.detach() for i, value in enumerate(found)}
        return Container(named, metadata)
    if not isinstance(found, dict):
        raise LorabenchError(
            f"{path}: holds a {type(found).__name__}; a mapping of names to tensors, or cloneofsimo's "
            "list of tensors, is expected. Save the adapter's state dict alone."
        )
    named = {_name(key): value for key, value in found.items()}
    if len(named) < len(found):
        raise LorabenchError(f"{path}: two of its names are one name when written down. Save the state dict anew.")
    tensors = {key: value.detach() for key, value in named.items() if _is_dense(value)}
    return Container(tensors, metadata, tuple(key for key in named if key not in tensors))


def _unnested(loaded: object) -> tuple[object, dict[str, str]]:
    """The tensors of {"state_dict": {...}} or {"weights": {...}, "metadata": {...}}, and the texts beside them.

    A mapping is looked into where it holds no tensor itself, and one alone of its values does.
    """
    if not isinstance(loaded, dict):
        return loaded, {}
    if isinstance(loaded.get("state_dict"), dict):
        return {**{key: value for key, value in loaded.items() if _is_dense(value)}, **loaded["state_dict"]}, {}
    if any(map(_is_dense, loaded.values())):
        return loaded, {}
    inner = [
        value
        for value in loaded.values()
        if isinstance(value, dict | list) and any(map(_is_dense, value.values() if isinstance(value, dict) else value))
    ]
    if len(inner) != 1:
        return loaded, {}
    beside = loaded.get("metadata")
    texts = beside.items() if isinstance(beside, dict) and beside is not inner[0] else ()
    metadata = {
        key: str(value) for key, value in texts if isinstance(key, str) and isinstance(value, str | int | float)
    }
    return inner[0], metadata


def _name(key: object) -> str:
    """A key as text; one that is no name is called by its type, since its text may be of any length."""
    return str(key) if isinstance(key, str | int | float) else f"a {type(key).__name__}"


def _is_dense(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
