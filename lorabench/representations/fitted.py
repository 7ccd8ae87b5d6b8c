"""What a learned representation knows of one unit, in memory or in a file, and whole runs of such files."""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lorabench.errors import LorabenchError
from lorabench.representations.autoencoder import AutoEncoder
from lorabench.storage import new_folder
from lorabench.text import counted
from lorabench.training import Keyed

__all__ = ["INDEX", "FittedUnit", "check_layers", "read_index", "save_fitted"]

_FORMAT = 1
INDEX = "config.json"
"""The file of a folder of fitted units that says what they are."""


@dataclass
class FittedUnit:
    """One unit's autoencoder.

    Attributes:
        layers: what it was trained on.
        shapes: (rows, cols) of every layer.
        arguments: of the module's constructor.
        notes: how its training went: history, best_epoch, diagnostics.
        module: the module itself, or None while it is still in `path`.
        path: the file that holds it, or None.
    """

    layers: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    arguments: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    module: AutoEncoder | None = None
    path: Path | None = None

    def to_bytes(self) -> bytes:
        """The safetensors file of a unit in memory."""
        if self.module is None:
            raise ValueError(f"{self.path} holds this unit, not memory")
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.module.state_dict().items()}
        known = {
            "format": _FORMAT,
            "layers": self.layers,
            "shapes": self.shapes,
            "arguments": self.arguments,
            "notes": self.notes,
            "checksum": _checksum(tensors),
        }
        # One entry alone: of several safetensors knows no order, and the same unit is to give the same file.
        return save(tensors, {"lorabench": json.dumps({**known, "header": _hash(json.dumps(known).encode())})})

    @classmethod
    def of(cls, path: Path) -> "FittedUnit":
        """What the header of such a file says; the weights stay where they are.

        Raises:
            LorabenchError: there is no such file, or it is none of ours.
        """
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            known = json.loads(header.pop("__metadata__")["lorabench"])
            whole = known.pop("header") == _hash(json.dumps(known).encode())
            size = 8 + length + max(tensor["data_offsets"][1] for tensor in header.values())
            whole = whole and path.stat().st_size == size and known["format"] == _FORMAT
            shapes = tuple((int(rows), int(cols)) for rows, cols in known["shapes"])
            found = cls(tuple(known["layers"]), shapes, known["arguments"], known["notes"], path=path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as error:
            raise _broken(path) from error
        if not whole:
            raise _broken(path)
        return found

    def verify(self) -> None:
        """Hold the weights in the file to their checksum.

        Raises:
            LorabenchError: they are damaged.
        """
        if self.path is not None:
            _tensors(self.path)

    def check(self, layers: tuple[str, ...], shapes: tuple[tuple[int, int], ...], where: str, zoo: str) -> None:
        """Refuse layers that the autoencoder has not learned to read.

        Args:
            layers: of the unit, in the data set at hand.
            shapes: theirs.
            where: what the message calls this unit.
            zoo: what it calls the data set.

        Raises:
            LorabenchError: they are others, of other shapes or in another order.
        """
        check_layers((self.layers, self.shapes), (layers, shapes), where, zoo)

    def on(self, kind: type[AutoEncoder], device: torch.device) -> AutoEncoder:
        """The module, for evaluation on a device.

        Raises:
            LorabenchError: the file is gone or damaged.
        """
        if self.module is None:
            self.module = self._read(kind)
        return self.module.to(device).eval()

    def _read(self, kind: type[AutoEncoder]) -> AutoEncoder:
        if self.path is None:
            raise ValueError("this unit is neither in memory nor in a file")
        tensors = _tensors(self.path)
        with torch.device("meta"):  # shapes alone: what a file says of them takes no memory
            module = kind(**self.arguments)
        try:
            module.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            raise _broken(self.path) from error
        for part in module.modules():
            if isinstance(part, Keyed):
                part.key = torch.zeros_like(part.key, device="cpu")
        return module


_Layers = tuple[tuple[str, ...], tuple[tuple[int, int], ...]]


def check_layers(known: _Layers, came: _Layers, where: str, zoo: str) -> None:
    """Refuse layers that an autoencoder has not learned to read.

    Args:
        known: layers and shapes that it was trained on.
        came: those of the data set at hand.
        where: what the message calls the unit.
        zoo: what it calls the data set.

    Raises:
        LorabenchError: they are others, of other shapes or in another order.
    """
    if known == came:
        return
    there, here = (dict(zip(*pair, strict=True)) for pair in (known, came))
    wrong = [layer for layer in {**here, **there} if there.get(layer) != here.get(layer)]
    differ = (
        f"they differ first in {wrong[0]}: {there.get(wrong[0], 'none')} there, {here.get(wrong[0], 'none')} here"
        if wrong
        else "they come in another order"
    )
    raise LorabenchError(
        f"{where}: fitted on {_count(there)}, and {zoo} has {_count(here)} in this unit; {differ}. The same layers in "
        "the same shapes and order are needed"
    )


def _count(layers: Mapping[str, object]) -> str:
    return counted(len(layers), "layer")


def _tensors(path: Path) -> dict[str, Tensor]:
    """What a unit's file holds, held against its checksum."""
    try:
        data = path.read_bytes()
        tensors: dict[str, Tensor] = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        whole = json.loads(header["__metadata__"]["lorabench"])["checksum"] == _checksum(tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _broken(path) from error
    if not whole:
        raise _broken(path)
    return tensors


def _broken(path: Path) -> LorabenchError:
    return LorabenchError(
        f"{path} holds no autoencoder that can be read: the file is missing, damaged or of another version. Delete it "
        "and run again, or name another run in representation.load_from"
    )


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for name, value in sorted(tensors.items()):
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode() + value.numpy().tobytes())
    return found.hexdigest()


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def save_fitted(units: Mapping[str, FittedUnit], config: dict[str, Any], folder: Path) -> None:
    """Write the autoencoders of all units, and last their index, into `folder`, in place of what is there.

    A unit that lies in a file already is linked where the file system allows, and copied elsewhere. The folder appears
    only when it is whole; an error leaves what was there.

    Raises:
        LorabenchError: a file that holds a unit is gone or damaged.
        OSError: the disk takes no more.
    """
    with new_folder(folder) as partial:  # what is there may hold the very files that are linked: it goes last
        _write_units(units, config, partial)


def _write_units(units: Mapping[str, FittedUnit], config: dict[str, Any], folder: Path) -> None:
    index: dict[str, Any] = {"format": _FORMAT, "config": config, "units": {}}
    for number, (unit, fitted) in enumerate(units.items()):
        file = folder / f"{number:04d}.safetensors"
        if fitted.path is None:
            file.write_bytes(fitted.to_bytes())
        else:
            _tensors(fitted.path)  # a run must not keep what nobody can read
            try:
                os.link(fitted.path, file)
            except OSError:  # another file system, or one without links
                shutil.copyfile(fitted.path, file)
        index["units"][unit] = {
            "file": file.name,
            "blake2b": _hash(file.read_bytes()),
            "layers": fitted.layers,
            "shapes": fitted.shapes,
            "latent_dim": fitted.arguments["latent_dim"],
            **{key: value for key, value in fitted.notes.items() if key != "history"},
        }
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def read_index(folder: Path) -> dict[str, Any]:
    """What `save_fitted` says of a folder.

    Raises:
        LorabenchError: it cannot be read.
    """
    path = folder / INDEX
    return _index(folder, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.lru_cache(maxsize=8)  # an arm asks for it once a unit
def _index(folder: Path, _changed: int) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
        said, units = index["config"], list(index["units"].values())
        known = index["format"] == _FORMAT and all(isinstance(said[key], str) for key in ("class", "scope", "on"))
        known = known and all({"file", "blake2b", "latent_dim", "layers", "shapes"} <= set(unit) for unit in units)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(folder / INDEX) from error
    if not known:
        raise _broken(folder / INDEX)
    return index
