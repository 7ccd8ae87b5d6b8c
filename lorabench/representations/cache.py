"""Features kept on disk, one file a unit, and computed again whenever what they depend on has changed."""

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lorabench.errors import LorabenchError
from lorabench.machine import map_in_lanes
from lorabench.representations.base import Representation
from lorabench.storage import files_hash, replace_file
from lorabench.text import some
from lorabench.zoo import Zoo

__all__ = ["features_as_they_come"]

_LOG = logging.getLogger(__name__)
_FORMAT = 1


def features_as_they_come(
    representation: Representation,
    zoo: Zoo,
    train_rows: Int64[np.ndarray, " train"],
    cache_dir: Path,
    device: torch.device,
    labels: Int64[np.ndarray, " n"] | None = None,
) -> Iterator[tuple[str, Float32[Tensor, "n f"]]]:
    """Features of every unit, (unit, [N, f]); from `cache_dir`/features where they are there and whole.

    A unit's key is made of the zoo's fingerprint, the unit and its layers, the representation's arguments,
    the code of this package and, if the representation learns, the training rows (and their classes, if it is
    supervised); so taking other layers away
    keeps it. What is missing is learned, from `train_rows` and its layers alone, and kept unit by unit as it
    comes, so that an interrupted run goes on where it stood. What is damaged is computed again. A disk that
    takes no more is a warning, and the features are computed all the same. One unit is in memory at a time, if
    the caller keeps no more.

    Args:
        representation: what to compute; it learns what is missing, and knows again what was kept.
        zoo: all N adapters.
        train_rows: which of them `fit` may see.
        cache_dir: its sub-folder `features` holds one safetensors file a unit.
        device: where to compute.
        labels: code of every adapter's class; what is supervised learns from those of the training rows, and is never
            given another. None: from the zoo's categories.

    Yields:
        What is kept, in the order of the units; then what is missing.

    Raises:
        LorabenchError: features are not finite.
    """
    folder = cache_dir / "features" if representation.cached else None
    told = labels[train_rows] if labels is not None and representation.supervised else None
    keys = {unit: _key(representation, zoo, unit, train_rows, told) for unit in representation.units(zoo)}
    missing = []
    for unit, key in keys.items():
        features = _load(folder, key)
        if features is None or not _restored(representation, folder, unit, key):
            missing.append(unit)
        else:
            yield unit, features
    if not missing:
        return
    needed = {layer for unit in missing for layer in representation.layers_of(zoo, unit)}
    known = zoo.only(sorted(needed)).rows(train_rows) if representation.learns else zoo
    known = known if told is None else replace(known, target=told)
    # Closed whatever happens: what still trains in the background stops at once.
    with contextlib.closing(_computed(representation, zoo, known, device, missing)) as computed:
        for unit, features in computed:
            kept = _keep_state(representation, folder, unit, keys[unit]) and _store(folder, keys[unit], features)
            folder = folder if kept else None
            yield unit, features


def _computed(
    representation: Representation, zoo: Zoo, known: Zoo, device: torch.device, missing: list[str]
) -> Generator[tuple[str, Float32[Tensor, "n f"]], None, None]:
    """The features that are missing, each as soon as they may be asked for; on a CPU a unit a thread."""

    def features(unit: str) -> Float32[Tensor, "n f"]:
        return representation.features(zoo, unit, device)

    if representation.learns or device.type != "cpu":
        for unit in representation.learn(known, device) if representation.learns else missing:
            yield unit, _checked(representation, zoo, unit, features(unit))
        return
    lanes = torch.get_num_threads()
    for start in range(0, len(missing), lanes):  # no more at a time: whoever takes them may be slower
        units = missing[start : start + lanes]
        for unit, found in zip(units, map_in_lanes(features, units), strict=True):
            # Not in the lanes: the first unit that is wrong is named, and not the one that was done first.
            yield unit, _checked(representation, zoo, unit, found)


def _restored(representation: Representation, folder: Path | None, unit: str, key: str) -> bool:
    """Whether the representation knows again what it once learned of a unit, where it keeps such."""
    if not representation.keeps or folder is None:
        return True
    try:
        representation.restore(unit, _path(folder, key, "fitted"))
    except LorabenchError as error:
        _LOG.info("%s; the features of %s are computed again", error, unit)
        return False
    return True


def _keep_state(representation: Representation, folder: Path | None, unit: str, key: str) -> bool:
    """Write what was learned of a unit, before its features: these are not looked for alone."""
    if not representation.keeps or folder is None:
        return True
    path = _path(folder, key, "fitted")
    if not _write_or_warn(path, representation.state(unit)):
        return False
    representation.restore(unit, path)  # from now on it lies on the disk alone
    return True


@functools.cache
def _code_version() -> str:
    """Hash of the sources that features are computed by."""
    here = Path(__file__).parent
    training = sorted((here.parent / "training").glob("*.py"))
    return files_hash(*sorted(here.glob("*.py")), *training, here.parent / "lowrank.py")


def _key(
    representation: Representation,
    zoo: Zoo,
    unit: str,
    train_rows: Int64[np.ndarray, " train"],
    told: Int64[np.ndarray, " train"] | None,
) -> str:
    """All that the features of one unit depend on, as one text."""
    parts = {
        "format": _FORMAT,
        "zoo": zoo.fingerprint,
        "unit": unit,
        "layers": representation.layers_of(zoo, unit),
        "representation": representation.config(),
        "features": representation.feature_names(zoo, unit),  # their order is no part of the arguments
        "code": _code_version(),
        "train_rows": _hash(train_rows) if representation.learns else None,
        "target": None if told is None else _hash(told),
    }
    return json.dumps(parts, sort_keys=True)


def _hash(rows: Int64[np.ndarray, " n"]) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


def _path(folder: Path, key: str, kind: str = "") -> Path:
    suffix = f".{kind}.safetensors" if kind else ".safetensors"
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}{suffix}"


def _checksum(features: Float32[Tensor, "n f"]) -> str:
    shape = f"{tuple(features.shape)}".encode()
    return hashlib.blake2b(shape + features.numpy().tobytes(), digest_size=16).hexdigest()


def _load(folder: Path | None, key: str) -> Float32[Tensor, "n f"] | None:
    """What is kept under `key`; None where there is nothing, or what is there is not that or not whole."""
    if folder is None:
        return None
    path = _path(folder, key)
    try:
        data = path.read_bytes()
        features = load(data)["features"]
        length = int.from_bytes(data[:8], "little")
        kept = json.loads(data[8 : 8 + length])["__metadata__"]
        whole = kept["key"] == key and kept["checksum"] == _checksum(features)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        _LOG.info("cached features %s cannot be read and are computed again: %s", path, error)
        return None
    if not whole or features.dtype != torch.float32:
        _LOG.info("cached features %s are damaged or of other data and are computed again", path)
        return None
    return features


def _store(folder: Path | None, key: str, features: Float32[Tensor, "n f"]) -> bool:
    """Write one entry whole or not at all; False when the disk refuses, which is logged."""
    if folder is None:
        return True
    data = save({"features": features.contiguous()}, {"key": key, "checksum": _checksum(features)})
    return _write_or_warn(_path(folder, key), data)


def _write_or_warn(path: Path, data: bytes) -> bool:
    try:
        replace_file(path, data, durable=False)  # its checksum tells whether it is whole
    except OSError as error:
        _LOG.warning(
            "features are not kept in %s (%s): they stay in memory for this run. Free some space, or set "
            "cache_dir=DIR (or LORABENCH_CACHE) to a roomier place, to have them kept",
            path.parent,
            error.strerror or error,
        )
        return False
    return True


def _checked(
    representation: Representation, zoo: Zoo, unit: str, features: Float32[Tensor, "n f"]
) -> Float32[Tensor, "n f"]:
    bad = torch.nonzero(~features.isfinite().all(1)).flatten().tolist()
    if bad:
        names = [zoo.labels.adapters[i] for i in bad]
        raise LorabenchError(
            f"{type(representation).__name__}: NaN or infinite features in unit {unit} of {zoo.name} for "
            f"{some(names)}. Remove these adapters from the data set, or choose another "
            "representation."
        )
    return features
