"""Autoencoders of an earlier run, taken as they are."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.errors import LorabenchError
from lorabench.representations.fitted import INDEX, FittedUnit, check_layers, read_index
from lorabench.text import some

__all__ = ["LoadedRun"]

Shapes = tuple[tuple[int, int], ...]


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
