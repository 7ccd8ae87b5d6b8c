"""A model as a folder: arrays as safetensors, the rest as JSON, and a card; no pickle, and nothing that is run."""

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from lorabench.classifiers import Classifier, ModuleShape
from lorabench.classifiers.factors import FactorClassifier
from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.findings import validated
from lorabench.predict.card import card
from lorabench.predict.conformal import Held
from lorabench.predict.model import Model, Scaling
from lorabench.predict.novelty import Novelty
from lorabench.predict.reading import ModelModule, as_zoo
from lorabench.representations import Representation
from lorabench.storage import new_folder
from lorabench.text import to_json

__all__ = ["CONFIG", "FILES", "SCHEMA", "check_place", "networks_of", "read_model", "write_model"]

SCHEMA = 2
ARRAYS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FILES = (ARRAYS, CONFIG, CARD)
_AGAIN = "Export it again with `lorabench export`."


@dataclass(frozen=True)
class _Description:
    """What stands in config.json, beside `schema`."""

    target: str
    classes: list[str]
    representation: dict[str, Any]
    classifier: dict[str, Any]
    modules: list[ModelModule]
    seeds: list[int]
    temperature: float
    trained_on: dict[str, Any]
    blake2b: str


def check_place(folder: Path, overwrite: bool) -> None:
    """Refuse a place where a model may not be written: a file, a folder of anything else, or a model without leave.

    Raises:
        LorabenchError: it is such a place.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise LorabenchError(f"{folder} is a file, and a folder is to be written. Name another folder.")
    other = sorted({entry.name for entry in folder.iterdir()} - set(FILES))
    if other:
        raise LorabenchError(f"{folder} holds {other[0]}: only a folder with a model is replaced. Name another folder.")
    if any(folder.iterdir()) and not overwrite:
        raise LorabenchError(f"{folder} holds a model already. Name another folder, or add --overwrite.")


def write_model(model: Model, folder: Path, overwrite: bool = False) -> None:
    """Write a model whole or not at all: `model.safetensors`, `config.json` and `README.md`.

    Raises:
        LorabenchError: something else lies there, or a model and `overwrite` is not said; or the disk is full.
    """
    check_place(folder, overwrite)
    arrays = {f"representation/{name}": values for name, values in model.representation.arrays().items()}
    for seed, network in zip(model.seeds, model.networks, strict=True):
        arrays |= {f"members/{seed}/{name}": values for name, values in network.state_dict().items()}
    if model.scaling is not None:
        arrays |= {f"scaling/{name}": values for name, values in vars(model.scaling).items()}
    arrays |= {f"conformal/{name}": torch.from_numpy(values) for name, values in vars(model.conformal).items()}
    arrays |= model.novelty.arrays()
    data = save({name: values.contiguous() for name, values in arrays.items()})
    description = _Description(
        target=model.target,
        classes=list(model.classes),
        representation=model.representation.config(),
        classifier=dict(model.classifier),
        modules=list(model.modules),
        seeds=list(model.seeds),
        temperature=model.temperature,
        trained_on=dict(model.trained_on),
        blake2b=_sum(data),
    )
    remedy = "Free some space or name another folder; nothing half-written was left."
    with explain_disk_errors(folder, remedy), new_folder(folder, replace=overwrite) as partial:
        (partial / ARRAYS).write_bytes(data)
        (partial / CONFIG).write_text(f"{to_json({'schema': SCHEMA, **asdict(description)}, 1)}\n")
        (partial / CARD).write_text(card(model))


def read_model(folder: Path) -> Model:
    """The model in a folder.

    Only classes of lorabench's own rooms are made, whatever the folder says.

    Raises:
        LorabenchError: there is none, of another schema, or damaged.
    """
    description = _description(folder)
    try:
        return _model(description, _arrays(folder, description.blake2b))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise LorabenchError(f"{folder / ARRAYS} is damaged or not of {CONFIG} ({error}). {_AGAIN}") from error


def _arrays(folder: Path, checksum: str) -> dict[str, Tensor]:
    data = (folder / ARRAYS).read_bytes()
    if _sum(data) != checksum:
        raise ValueError("its checksum is another")
    arrays: dict[str, Tensor] = load(data)
    return arrays


def _description(folder: Path) -> _Description:
    path = folder / CONFIG
    if not path.is_file():
        raise LorabenchError(f"{folder}: no model, it has no {CONFIG}. Give a folder that `lorabench export` wrote.")
    try:
        said = json.loads(path.read_text())
        schema = said.pop("schema", None) if isinstance(said, dict) else None
    except (OSError, ValueError) as error:
        raise LorabenchError(f"{path} cannot be read ({error}). {_AGAIN}") from error
    if schema != SCHEMA:
        raise LorabenchError(f"{path}: schema {schema}, this version of lorabench reads {SCHEMA}. {_AGAIN}")
    try:
        return validated(_Description, said)
    except ValueError as error:
        raise LorabenchError(f"{path} is damaged ({str(error).splitlines()[0]}). {_AGAIN}") from error


def _model(description: _Description, arrays: Mapping[str, Tensor]) -> Model:
    modules = tuple(description.modules)
    representation = _representation(description.representation)
    representation.take_arrays(as_zoo(modules, []), _within("representation", arrays))
    scaling = _within("scaling", arrays)
    members = [_within(f"members/{seed}", arrays) for seed in description.seeds]
    held = _within("conformal", arrays)
    return Model(
        target=description.target,
        classes=tuple(description.classes),
        modules=modules,
        representation=representation,
        scaling=Scaling(**scaling) if scaling else None,
        classifier=description.classifier,
        seeds=tuple(description.seeds),
        networks=networks_of(description.classifier, modules, description.seeds, members),
        temperature=description.temperature,
        conformal=Held(held["scores"].numpy(), held["weights"].numpy()),
        novelty=Novelty.from_arrays([module.name for module in modules], arrays),
        trained_on=description.trained_on,
    )


def networks_of(
    classifier: Mapping[str, Any],
    modules: Sequence[ModelModule],
    seeds: Sequence[int],
    members: Sequence[Mapping[str, Tensor]],
) -> list[nn.Module]:
    """The members' networks with their weights.

    Args:
        classifier: class of the members, and arguments of each, without the seed and the shapes of modules.
        modules: that a classifier of factors reads.
        seeds: of the members.
        members: weights of each.

    Raises:
        ValueError: the class is none of lorabench's classifiers.
        RuntimeError: the weights are not of its network.
    """
    kind = _own_class(classifier["class"], "lorabench.classifiers.", Classifier)
    read = {"shapes": [ModuleShape(one.rank, one.d_in, one.d_out) for one in modules]}
    found = []
    for seed, arguments, state in zip(seeds, classifier["arguments"], members, strict=True):
        network = kind(**arguments, **(read if issubclass(kind, FactorClassifier) else {}), seed=seed).network
        network.load_state_dict(state)
        found.append(network)
    return found


def _representation(said: Mapping[str, Any]) -> Representation:
    arguments = {name: value for name, value in said.items() if name not in ("class", "fitted")}
    found: Representation = _own_class(said["class"], "lorabench.representations.", Representation)(**arguments)
    return found


def _own_class(path: str, room: str, kind: type) -> Any:
    """A class by its path, if it is of that room and kind: what a stranger's folder names is not run.

    Raises:
        ValueError: it is of no such room.
        TypeError: it is of no such kind.
    """
    module, _, name = path.rpartition(".")
    if not path.startswith(room):
        raise ValueError(f"{path} is no class of {room[:-1]}")
    found = getattr(importlib.import_module(module), name)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise TypeError(f"{path} is no {kind.__name__}")
    return found


def _within(prefix: str, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {name.removeprefix(start): values for name, values in arrays.items() if name.startswith(start)}


def _sum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
