"""Autoencoders of an earlier run, taken as they are."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float32
from torch import Tensor

from lorabench.errors import LorabenchError
from lorabench.representations.base import Representation, Unit
from lorabench.representations.fitted import INDEX, FittedUnit, check_layers, read_index
from lorabench.representations.learned import Learned
from lorabench.representations.reading import shapes_of
from lorabench.text import some
from lorabench.zoo import Zoo

__all__ = ["Loaded", "LoadedRun"]

Shapes = tuple[tuple[int, int], ...]


@dataclass
class Loaded(Representation):
    """Latent vectors of the autoencoders that another run has fitted, taken as they are, with that run's settings.

    Args:
        given: of the class whose autoencoders are taken; an argument that is neither that run's nor the default would
            change nothing, and is refused.
        load_from: the run's folder, or its sub-folder of one representation.
    """

    learns: ClassVar[bool] = True
    keeps: ClassVar[bool] = True

    given: Learned
    load_from: str

    @cached_property
    def run(self) -> "LoadedRun":
        """The folder of the autoencoders.

        Raises:
            LorabenchError: there is none of this class, or more than one.
        """
        return LoadedRun.of(self.load_from, f"{type(self.given).__module__}.{type(self.given).__qualname__}")

    @cached_property
    def trained(self) -> Learned:
        """The representation as it was in that run; defaults stand for settings that it did not know yet."""
        return type(self.given)(**{k: v for k, v in self.run.config.items() if k in asdict(self.given)})

    @property
    def fitted_(self) -> dict[str, FittedUnit]:
        """The autoencoder of every unit that was taken."""
        return self.trained.fitted_

    @property
    def unit(self) -> Unit:
        """As in that run."""
        return self.trained.unit

    @property
    def gauge_invariant(self) -> bool:
        """As in that run."""
        return self.trained.gauge_invariant

    def units(self, zoo: Zoo) -> tuple[str, ...]:
        """As in that run."""
        return self.trained.units(zoo)

    def layers_of(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """As in that run."""
        return self.trained.layers_of(zoo, unit)

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """As in that run.

        Raises:
            LorabenchError: it has no such unit, or fitted it on other layers or shapes.
        """
        return self.trained.names_of(self.run.length(unit, *self._layers(zoo, unit), zoo.name))

    def fit(self, zoo: Zoo, device: torch.device) -> "Loaded":
        """Take the autoencoder of every unit.

        Raises:
            LorabenchError: `check` refuses; a unit is missing, damaged, or was fitted on other layers or shapes.
        """
        del device
        self.check()
        for unit in self.units(zoo):
            self.trained.take(unit, self.run.unit(unit, *self._layers(zoo, unit), zoo.name))
        return self

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """Features of every adapter, [N, f]; see `Learned.features`."""
        return self.trained.features(zoo, unit, device)

    def state(self, unit: str) -> bytes:
        """The file that `restore` reads."""
        return self.trained.state(unit)

    def restore(self, unit: str, path: Path) -> None:
        """Take a unit's autoencoder from a file that `state` gave."""
        self.trained.restore(unit, path)

    def arrays(self) -> dict[str, Tensor]:
        """The file of every unit."""
        return self.trained.arrays()

    def config(self) -> dict[str, Any]:
        """Class and arguments of the training; `fitted` says which autoencoders these are, wherever they lie."""
        return {**self.run.config, "fitted": self.run.digest()}

    def check(self) -> None:
        """Refuse arguments that cannot be, or that contradict the run's.

        Raises:
            LorabenchError: there is such an argument, or no such run.
        """
        self.given.check()
        default = asdict(type(self.given)())
        self.run.refuse_others({name: v for name, v in asdict(self.given).items() if v != default[name]})

    def _layers(self, zoo: Zoo, unit: str) -> tuple[tuple[str, ...], Shapes]:
        layers = self.layers_of(zoo, unit)
        return layers, shapes_of(zoo, layers)


@dataclass(frozen=True)
class LoadedRun:
    """The folder that `save_fitted` wrote for one representation.

    Attributes:
        said: what representation.load_from says.
        folder: the folder itself.
    """

    said: str
    folder: Path

    @classmethod
    def of(cls, said: str, kind: str) -> "LoadedRun":
        """`said` itself, or its only folder of a class.

        Args:
            said: what representation.load_from says.
            kind: module and name of the representation's class.

        Raises:
            LorabenchError: there is none, or more than one.
        """
        run = Path(said)
        if (run / INDEX).is_file():
            candidates = [run]
        else:
            candidates = sorted(path.parent for path in (run / "fitted").glob(f"[!.]*/{INDEX}"))
        found = [path for path in candidates if read_index(path)["config"]["class"] == kind]
        if len(found) == 1:
            return cls(said, found[0])
        name = kind.rpartition(".")[2]
        there = ", ".join(f"{path} ({_class(path)})" for path in (found or candidates))
        if not run.exists():
            there = "no such folder"
        raise LorabenchError(
            f"representation.load_from={said}: the folder of one run with a fitted {name} is needed, such as "
            f"outputs/DATE/TIME or its sub-folder fitted/NAME; found there: {there or 'no fitted representation'}"
        )

    @property
    def config(self) -> dict[str, Any]:
        """Class and arguments of the representation that was trained."""
        found: dict[str, Any] = read_index(self.folder)["config"]
        return found

    def digest(self) -> str:
        """Of the files of all units: two folders of the same autoencoders have the same."""
        units = read_index(self.folder)["units"]
        return hashlib.sha256("".join(units[unit]["blake2b"] for unit in sorted(units)).encode()).hexdigest()

    def refuse_others(self, given: Mapping[str, Any]) -> None:
        """Refuse settings that are not those of the training: they would change nothing.

        Args:
            given: by argument, what the user asked for.

        Raises:
            LorabenchError: one of them differs.
        """
        for name, value in given.items():
            # json, as the index is: a tuple there is a list here
            if name in self.config and json.dumps(value) != json.dumps(self.config[name]):
                raise LorabenchError(
                    f"representation.{name}={value}: the autoencoders of load_from={self.said} were trained with "
                    f"{name}={self.config[name]} and are taken as they are; leave one of the two out"
                )

    def length(self, unit: str, layers: tuple[str, ...], shapes: Shapes, zoo: str) -> int:
        """Length of a unit's latent vector.

        Raises:
            LorabenchError: there is no such unit, or it was fitted on other layers or shapes.
        """
        return int(self._known(unit, layers, shapes, zoo)["latent_dim"])

    def unit(self, unit: str, layers: tuple[str, ...], shapes: Shapes, zoo: str) -> FittedUnit:
        """One unit, its weights still in the file.

        Raises:
            LorabenchError: there is no such unit, it was fitted on other layers or shapes, or its file is damaged.
        """
        found = FittedUnit.of(self.folder / self._known(unit, layers, shapes, zoo)["file"])
        check_layers((found.layers, found.shapes), (layers, shapes), self._where(unit), zoo)
        return found

    def _where(self, unit: str) -> str:
        return f"representation.load_from={self.said}, unit {unit}"

    def _known(self, unit: str, layers: tuple[str, ...], shapes: Shapes, zoo: str) -> dict[str, Any]:
        units: dict[str, dict[str, Any]] = read_index(self.folder)["units"]
        if unit not in units:
            raise LorabenchError(
                f"representation.load_from={self.said}: no autoencoder of unit {unit} there; there are {some(units)}. "
                "A data set with the same layers is needed"
            )
        one = units[unit]
        known_layers = tuple(one["layers"]), tuple((int(rows), int(cols)) for rows, cols in one["shapes"])
        check_layers(known_layers, (layers, shapes), self._where(unit), zoo)
        return one


def _class(folder: Path) -> str:
    return str(read_index(folder)["config"]["class"]).rpartition(".")[2]
