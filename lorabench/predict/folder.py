"""A model as a folder: arrays as safetensors, the rest as JSON, and a card; no pickle, and nothing that is run."""

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from lorabench.adapters.reading.opening import read_json
from lorabench.classifiers import Classifier
from lorabench.classifiers.factors import FactorClassifier
from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.findings import validated
from lorabench.machine import free_memory
from lorabench.predict import ARRAYS, CONFIG
from lorabench.predict.card import card
from lorabench.predict.character import DIRECTIONS, Span, character
from lorabench.predict.conformal import TEMPERATURES, Held
from lorabench.predict.model import Model
from lorabench.predict.novelty import Novelty
from lorabench.predict.reading import ModelModule, Reading, as_zoo
from lorabench.representations import Representation
from lorabench.representations.load_from import Loaded
from lorabench.storage import new_folder
from lorabench.text import to_json
from lorabench.training import Scaling
from lorabench.zoo import ModuleShape

__all__ = ["FILES", "SCHEMA", "check_place", "checksum", "networks_of", "read_model", "write_model"]

SCHEMA = 3
CARD = "README.md"
FILES = (ARRAYS, CONFIG, CARD)
_MOST_RANK = 4096  # of a module that is smaller than that
_AGAIN = "Export it again with `lorabench export`."


@dataclass(frozen=True)
class _Description:
    """What stands in config.json, beside `schema` and `blake2b`."""

    target: str
    classes: list[str]
    representation: dict[str, Any]
    classifier: dict[str, Any]
    modules: list[ModelModule]
    seeds: list[int]
    temperature: float
    trained_on: dict[str, Any]


def check_place(folder: Path, overwrite: bool) -> None:
    """Refuse a place where a model may not be written: a file, a folder of anything else, or a model without leave.

    Raises:
        LorabenchError: it is such a place.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise LorabenchError(f"{folder} is a file, and a folder is to be written. Name another folder.")
    there = sorted(entry.name for entry in folder.iterdir())
    if not there:
        return
    other = [name for name in there if name not in FILES]
    if other or not _is_model(folder):
        held = (other or there)[0]
        raise LorabenchError(f"{folder} holds {held}: only a folder with a model is replaced. Name another folder.")
    if not overwrite:
        raise LorabenchError(f"{folder} holds a model already. Name another folder, or add --overwrite.")


def _is_model(folder: Path) -> bool:
    """Whether this or another version wrote it: other models have files of these names too."""
    try:
        said = read_json(folder / CONFIG)
    except LorabenchError:
        return False
    return {"schema", "blake2b"} <= said.keys()


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
    said = {"schema": SCHEMA, **_said(model)}
    remedy = "Free some space or name another folder; nothing half-written was left."
    with explain_disk_errors(folder, remedy), new_folder(folder, replace=overwrite) as partial:
        (partial / ARRAYS).write_bytes(data)
        (partial / CONFIG).write_text(f"{to_json({**said, 'blake2b': checksum(said, data)}, 1)}\n")
        (partial / CARD).write_text(card(model))


def _said(model: Model) -> dict[str, Any]:
    """What config.json says, but for schema and checksum."""
    description = _Description(
        target=model.target,
        classes=list(model.classes),
        representation=model.representation.config(),
        classifier=dict(model.classifier),
        modules=list(model.modules),
        seeds=list(model.seeds),
        temperature=model.temperature,
        trained_on=dict(model.trained_on),
    )
    return asdict(description)


def checksum(said: Mapping[str, Any], data: bytes) -> str:
    """Of what config.json says and of the arrays; it tells what was damaged, not what a stranger wrote so.

    Args:
        said: all of config.json but the checksum itself.
        data: the file of the arrays.
    """
    words = json.dumps(json.loads(to_json(said)), sort_keys=True).encode()
    return hashlib.blake2b(words + data, digest_size=16).hexdigest()


def read_model(folder: Path) -> Model:
    """The model in a folder.

    Only classes of lorabench's own rooms are made, whatever the folder says.

    Raises:
        LorabenchError: there is none, of another schema, or damaged.
    """
    description, said = _description(folder)
    try:
        model = _model(description, _arrays(folder, said))
        _check_asked(model)
    except ImportError as error:
        raise LorabenchError(
            f"{folder / CONFIG} was made by another version of lorabench: {error}. Install that version, or export the "
            "model again with this one"
        ) from error
    except (
        OSError, SafetensorError, ValueError, LookupError, TypeError, RuntimeError, AttributeError, MemoryError,
        ArithmeticError,
    ) as error:  # fmt: skip
        raise LorabenchError(f"{folder / ARRAYS} is damaged or not of {CONFIG} ({error}). {_AGAIN}") from error
    return model


def _arrays(folder: Path, said: dict[str, Any]) -> dict[str, Tensor]:
    data = (folder / ARRAYS).read_bytes()
    if said.pop("blake2b", None) != checksum(said, data):
        raise ValueError("its checksum is another")
    arrays: dict[str, Tensor] = load(data)
    return arrays


def _description(folder: Path) -> tuple[_Description, dict[str, Any]]:
    """What config.json says, as it is meant and as it stands there."""
    path = folder / CONFIG
    if not path.is_file():
        raise LorabenchError(f"{folder}: no model, it has no {CONFIG}. Give a folder that `lorabench export` wrote.")
    said = read_json(path)
    schema = said.get("schema")
    if schema != SCHEMA:
        raise LorabenchError(f"{path}: schema {schema}, this version of lorabench reads {SCHEMA}. {_AGAIN}")
    try:
        words = {name: value for name, value in said.items() if name not in ("schema", "blake2b")}
        return validated(_Description, words), said
    except ValueError as error:
        raise LorabenchError(f"{path} is damaged ({str(error).splitlines()[0]}). {_AGAIN}") from error


def _model(description: _Description, arrays: Mapping[str, Tensor]) -> Model:
    modules = tuple(description.modules)
    _check_modules(modules, arrays)
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
        ValueError: the class is none of lorabench's classifiers, or weights are of another type of numbers.
        ImportError: this lorabench has no such class.
        RuntimeError: the weights are not of its network.
    """
    kind = _own_class(classifier["class"], "lorabench.classifiers.", Classifier)
    read = {"shapes": [ModuleShape(one.rank, one.d_in, one.d_out) for one in modules]}
    found = []
    for seed, arguments, state in zip(seeds, classifier["arguments"], members, strict=True):
        with torch.device("meta"):  # shapes alone: what a folder says of them takes no memory
            network = kind(**arguments, **(read if issubclass(kind, FactorClassifier) else {}), seed=seed).network
        types = {name: values.dtype for name, values in network.state_dict().items()}
        wrong = [name for name, values in state.items() if types.get(name, values.dtype) != values.dtype]
        if wrong:
            raise ValueError(f"{wrong[0]} of member {seed} is {state[wrong[0]].dtype}, and {types[wrong[0]]} is needed")
        network.load_state_dict(state, assign=True)
        found.append(network)
    return found


def _check_modules(modules: Sequence[ModelModule], arrays: Mapping[str, Tensor]) -> None:
    """Hold the sizes that modules are said to have against the arrays, before anything of these sizes is made.

    Raises:
        ValueError: there is none, two have one name, or one has other sizes than its arrays.
        KeyError: one has no arrays.
    """
    layers = {layer for module in modules for layer in (module.down, module.up)}
    if not modules or len({module.name for module in modules}) < len(modules) or len(layers) < 2 * len(modules):
        raise ValueError("its modules are none, or not all different")
    for module in modules:
        known = [arrays[f"novelty/span/{module.name}/{side}"] for side in Span._fields]
        if not all(one.dim() == 2 and 1 <= one.shape[1] <= min(one.shape[0], DIRECTIONS) for one in known):
            raise ValueError(f"the directions of {module.name} are not 1 to {DIRECTIONS}")
        there = [one.shape[0] for one in known]
        if there != [module.d_in, module.d_out]:
            raise ValueError(
                f"{module.name} is said to be {module.d_out} x {module.d_in}, and its arrays are of "
                f"{there[1]} x {there[0]}"
            )
        if not 1 <= module.rank <= max(_MOST_RANK, sum(there)):
            raise ValueError(f"{module.name} is said to have rank {module.rank}")
    size = 8 * sum(module.rank * (module.d_in + module.d_out) for module in modules)
    if size > free_memory(torch.device("cpu")):
        raise ValueError(f"an adapter of its modules takes {size / 1e9:.1f} GB, more than this machine has free")


def _check_asked(model: Model) -> None:
    """Ask of one random adapter, so that parts which do not fit together are told now.

    Raises:
        ValueError: the members name more or fewer classes than there are, a number is none, or scores are not as
            `Held.of` gives them.
        RuntimeError: parts do not fit together.
    """
    low, high = TEMPERATURES
    if not low <= model.temperature <= high:
        raise ValueError(f"its temperature is {model.temperature}, and {low:g} to {high:g} are found")
    model.conformal.check()
    model.novelty.check(len(model.modules))
    if not model.networks:
        raise ValueError("it has no members")
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator)

    factors = tuple((drawn(one.rank, one.d_in), drawn(one.d_out, one.rank), 1.0) for one in model.modules)
    zoo = as_zoo(model.modules, [Reading(factors)])
    inputs, traits = model.inputs(zoo), character(zoo, model.novelty.spans)
    logits = model.logits(inputs)
    if logits.shape[-1] != len(model.classes):
        raise ValueError(f"its members tell {logits.shape[-1]} classes apart, and it names {len(model.classes)}")
    distances = model.novelty.distances(inputs, traits)
    if not (logits.isfinite().all() and np.isfinite(distances).all()):
        raise ValueError("a number in it is none")
    model.novelty.reason(distances[0], traits[0])


def _representation(said: Mapping[str, Any]) -> Representation:
    arguments = {name: value for name, value in said.items() if name not in ("class", "fitted")}
    found: Representation = _own_class(said["class"], "lorabench.representations.", Representation)(**arguments)
    return found


def _own_class(path: str, room: str, kind: type) -> Any:
    """A class by its path, if it is of that room and kind: what a stranger's folder names is not run.

    Raises:
        ValueError: it is of no such room.
        ImportError: there is none of this name.
        TypeError: it is of no such kind, or takes what another run wrote.
    """
    module, _, name = path.rpartition(".")
    if not path.startswith(room):
        raise ValueError(f"{path} is no class of {room[:-1]}")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"this one has no {path}") from error
    if not (isinstance(found, type) and issubclass(found, kind)) or issubclass(found, Loaded):
        raise TypeError(f"{path} is no {kind.__name__}")
    return found


def _within(prefix: str, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {name.removeprefix(start): values for name, values in arrays.items() if name.startswith(start)}
