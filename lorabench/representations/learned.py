"""The contract of representations that train an autoencoder of every unit."""

import functools
import logging
import tempfile
import threading
from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import torch
from jaxtyping import Float32
from torch import Tensor

from lorabench.errors import LorabenchError
from lorabench.machine import free_memory, in_lanes, recycle_freed_blocks
from lorabench.options import Above, AtLeast, Below, Filled, OneOf
from lorabench.representations.autoencoder import JUDGED, AutoEncoder
from lorabench.representations.base import On, Representation, Unit, chunks
from lorabench.representations.components import unit_seed
from lorabench.representations.fitted import FittedUnit
from lorabench.representations.fitting import Course, Schooling, fit_together, held_rows, split_rows
from lorabench.representations.reading import classes_of, flat_rows, shapes_of, sketch_of, sketch_shapes, sketched_rows
from lorabench.representations.training_memory import member_bytes
from lorabench.training import set_keys
from lorabench.zoo import Zoo

__all__ = ["Learned", "Widths"]

Widths = Annotated[list[int], AtLeast(1), Filled()]
"""Widths of hidden layers."""

_LOG = logging.getLogger(__name__)
_FEWEST_INPUTS = 4
_FEWEST_ROWS = 4  # two to train on, since batch norm knows no batch of one, and two to stop by
_SHARE = 0.6  # of the free memory, for one stack
_CONSTANT = 1e-5  # spread over the rows below which a feature says nothing


@dataclass
class Learned(Representation):
    """Latent vectors of an autoencoder trained on every unit's flattened weights, [N, latent].

    Training sees the training rows alone, and no labels (but `supervised` ones); a seeded tenth of them decides when to
    stop. All units are trained together, as lanes on a CPU and stacked on a GPU, and every lane or stack is kept as
    soon as it is done.

    Args:
        latent_dim: length of the feature vector; null for a share of the inputs (`default_latent`).
        on: "factors" for the weights as they are, or "delta" for ΔW·Ω and Ψᵀ·ΔW of every module (`sketched_rows`),
            which no gauge changes; a unit is a module then, where scope says layer.
        sketch: columns of Ω and of Ψ, at most as many as ΔW has.
        scope: "layer", "module" (both its layers) or "all" for one autoencoder of all layers behind one another.
        epochs: at most.
        patience: epochs without a lower validation loss before training stops.
        batch_size: adapters a step.
        learning_rate: of Adam.
        plateau_factor: the learning rate is multiplied by this ...
        plateau_patience: ... after more than this many epochs without a lower validation loss.
        val_share: share of the training rows that decide when to stop.
        seed: of initial weights, order of the rows, noise and that share.
        memory_gb: what a stack on a GPU, or all lanes of a CPU, may take; null for 60 % of what is free.
    """

    learns: ClassVar[bool] = True
    keeps: ClassVar[bool] = True
    latent: ClassVar[tuple[int, int]] = (10, 64)
    """The latent vector has the inputs over the first, at most the second."""

    latent_dim: Annotated[int | None, AtLeast(1)] = None
    on: On = "factors"
    sketch: Annotated[int, AtLeast(1)] = 8
    scope: Annotated[str, OneOf(["layer", "module", "all"])] = "layer"
    epochs: Annotated[int, AtLeast(1)] = 100
    patience: Annotated[int, AtLeast(1)] = 15
    batch_size: Annotated[int, AtLeast(2)] = 64
    learning_rate: Annotated[float | int, Above(0)] = 1e-3
    plateau_factor: Annotated[float | int, Above(0), Below(1)] = 0.5
    plateau_patience: Annotated[int, AtLeast(1)] = 5
    val_share: Annotated[float | int, Above(0), Below(1)] = 0.1
    seed: int = 0
    memory_gb: Annotated[float | int | None, Above(0)] = None

    @property
    def unit(self) -> Unit:
        """As `scope` says; a module in place of a layer on delta."""
        return "module" if self.scope == "layer" and self._delta else cast("Unit", self.scope)

    @property
    def _delta(self) -> bool:
        return self.on == "delta"

    @functools.cached_property
    def fitted_(self) -> dict[str, FittedUnit]:
        """The autoencoder of every unit that was learned or restored."""
        return {}

    @functools.cached_property
    def warned_(self) -> set[tuple[str, tuple[str, ...]]]:
        """Units, with their layers, of which the user was told what to know."""
        return set()

    @property
    def gauge_invariant(self) -> bool:
        """Whether ΔW is read, and not the factors' entries."""
        return self._delta

    @classmethod
    @abstractmethod
    def kind(cls) -> type[AutoEncoder]:
        """The module that is trained."""

    @classmethod
    def default_latent(cls, inputs: int) -> int:
        """Length of the latent vector for so many inputs, at least 2."""
        share, most = cls.latent
        return max(2, min(most, inputs // share))

    def concerns(self, unit: str, fitted: FittedUnit) -> Iterator[str]:
        """What a user should know of a unit's training, and which option to try."""
        del unit
        constant = fitted.notes["diagnostics"]["constant_features"]
        if constant:
            length = len(self.names_of(fitted.arguments["latent_dim"]))
            yield (
                f"{constant} of {length} features are the same for all adapters; train with a lower "
                f"representation.latent_dim, or for more than {len(fitted.notes['history'])} epochs"
            )

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """What the columns are called: `names_of` the latent vector."""
        return self.names_of(self._latent(self._inputs(zoo, unit)))

    def names_of(self, latent: int) -> tuple[str, ...]:
        """`z1`, `z2` and so on, for a latent vector of this length."""
        return tuple(f"z{i + 1}" for i in range(latent))

    def fit(self, zoo: Zoo, device: torch.device) -> "Learned":
        """Train the autoencoder of every unit on these rows.

        Raises:
            LorabenchError: an argument is not allowed; a unit has fewer than 4 weights, or no two rows of it differ;
                there are fewer than 4 rows; a loss is not finite.
        """
        for _ in self.learn(zoo, device):
            pass
        return self

    def learn(self, zoo: Zoo, device: torch.device) -> Generator[str, None, None]:
        """`fit`, unit after unit as they finish."""
        self.check()
        units = self.units(zoo)
        self._check(zoo, units)
        recycle_freed_blocks()
        lanes = self._lanes(zoo, units, device)

        def work(chunk: Sequence[str], stopped: threading.Event) -> dict[str, FittedUnit]:
            return self._train(zoo, chunk, device, stopped)

        with closing(in_lanes(self._chunks(zoo, units, device), work, lanes)) as finished:
            for found in finished:
                for unit, fitted in found.items():
                    self.take(unit, fitted)
                    yield unit

    def take(self, unit: str, fitted: FittedUnit) -> None:
        """Encode a unit by this autoencoder from now on, and say once what the user should know of it."""
        self.fitted_[unit] = fitted
        if (unit, fitted.layers) not in self.warned_:
            self.warned_.add((unit, fitted.layers))
            for concern in self.concerns(unit, fitted):
                _LOG.warning("%s, unit %s: %s", self.name, unit, concern)

    def layers_of(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """The layers of a unit; on delta, those that have a partner."""
        if not self._delta:
            return super().layers_of(zoo, unit)
        modules = [self.module(zoo, name) for name in self._modules(zoo, unit)]
        return tuple(layer for module in modules for layer in (module.down, module.up))

    def units(self, zoo: Zoo) -> tuple[str, ...]:
        """As for every representation.

        Raises:
            LorabenchError: there is none; on delta, no module has both its layers.
        """
        if self._delta and not zoo.modules:
            raise LorabenchError(
                f"{self.name} on delta needs modules with both their layers, and {zoo.name} has none left"
            )
        return super().units(zoo)

    def new_module(self, zoo: Zoo, unit: str) -> AutoEncoder:
        """The autoencoder of a unit as it is before training."""
        return self.kind()(**self._architecture(zoo, unit))

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """Features of every adapter, [N, f].

        Raises:
            LorabenchError: `fit` has not seen this unit, or saw other layers or shapes.
        """
        fitted = self.fitted_.get(unit)
        layers = self.layers_of(zoo, unit)
        if fitted is None:
            raise LorabenchError(f"{self.name} was not fitted on unit {unit!r} of {zoo.name}; call fit first")
        fitted.check(layers, shapes_of(zoo, layers), f"{self.name}, unit {unit}", zoo.name)
        module = fitted.on(self.kind(), device)
        found = []
        with torch.no_grad():
            for start, stop in chunks(zoo, layers):
                found.append(module(self._read(zoo, unit, module, start, stop)).float().cpu())
        return torch.cat([torch.empty(0, len(self.names_of(fitted.arguments["latent_dim"]))), *found])

    def state(self, unit: str) -> bytes:
        """The file that `restore` reads."""
        return self.fitted_[unit].to_bytes()

    def restore(self, unit: str, path: Path) -> None:
        """Take a unit's autoencoder from a file that `state` gave."""
        fitted = FittedUnit.of(path)
        fitted.verify()
        self.take(unit, fitted)

    def arrays(self) -> dict[str, Tensor]:
        """The file of every unit, as `state` gives it, byte by byte."""
        cpu = torch.device("cpu")
        for fitted in self.fitted_.values():
            fitted.on(self.kind(), cpu)  # what lies in a file is read
        return {unit: torch.frombuffer(bytearray(self.state(unit)), dtype=torch.uint8) for unit in self.fitted_}

    def take_arrays(self, zoo: Zoo, arrays: Mapping[str, Tensor]) -> None:
        """Know again what `arrays` gave."""
        with tempfile.TemporaryDirectory() as scratch:
            for unit in self.units(zoo):
                path = Path(scratch) / "unit.safetensors"
                path.write_bytes(arrays[unit].numpy().tobytes())
                self.restore(unit, path)
                self.fitted_[unit].on(self.kind(), torch.device("cpu"))  # while the file is there

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__.lower()

    def config(self) -> dict[str, Any]:
        """Class and arguments of the training."""
        found = super().config()
        del found["memory_gb"]  # it says nothing about the features
        return found

    def _latent(self, inputs: int) -> int:
        if self.latent_dim is None:
            return self.default_latent(inputs)
        if not isinstance(self.latent_dim, int) or not 1 <= self.latent_dim <= max(inputs, 2):
            raise LorabenchError(
                f"representation.latent_dim={self.latent_dim}: a whole number from 1 to the {inputs} numbers that the "
                "autoencoder reads is needed, or null"
            )
        return self.latent_dim

    def _architecture(self, zoo: Zoo, unit: str) -> dict[str, Any]:
        """Arguments of a unit's module: this class's own, and what all have."""
        shared = {f.name for f in fields(Learned)}
        inputs = self._inputs(zoo, unit)
        return {
            **{name: value for name, value in asdict(self).items() if name not in shared},
            "in_features": inputs,
            "latent_dim": self._latent(inputs),
            "seed": unit_seed(self.seed, unit),
            "learning_rate": self.learning_rate,
            "plateau_factor": self.plateau_factor,
            "plateau_patience": self.plateau_patience,
            "sketches": self._sketch_shapes(zoo, unit),
        }

    def _modules(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        return tuple(module.name for module in zoo.modules) if unit == "all" else (unit,)

    def _sketch_shapes(self, zoo: Zoo, unit: str) -> list[list[int]]:
        return sketch_shapes(zoo, self._modules(zoo, unit), self.sketch) if self._delta else []

    def _inputs(self, zoo: Zoo, unit: str) -> int:
        """How many numbers the autoencoder of a unit reads."""
        if self._delta:
            return sum(right * d_out + left * d_in for d_in, right, d_out, left in self._sketch_shapes(zoo, unit))
        return sum(rows * cols for rows, cols in shapes_of(zoo, self.layers_of(zoo, unit)))

    def _read(self, zoo: Zoo, unit: str, module: AutoEncoder, start: int, stop: int) -> Float32[Tensor, "n d"]:
        """What a unit's autoencoder reads of some adapters, not yet standardised."""
        if module.sketches:
            return sketched_rows(zoo, self._modules(zoo, unit), module.sketches, module.device, start, stop)
        return flat_rows(zoo, self.layers_of(zoo, unit), module.device, start, stop)

    def _check(self, zoo: Zoo, units: Sequence[str]) -> None:
        held = held_rows(len(zoo), self.val_share)
        if len(zoo) < _FEWEST_ROWS or len(zoo) - held < 2:
            raise LorabenchError(
                f"{self.name} needs at least {_FEWEST_ROWS} training adapters, two of them to stop by, and "
                f"{zoo.name} has {len(zoo)}, of which val_share={self.val_share} sets {held} aside"
            )
        for unit in units:
            width = self._inputs(zoo, unit)
            if width < _FEWEST_INPUTS:
                raise LorabenchError(
                    f"{self.name}: unit {unit} of {zoo.name} has {width} weights, and an autoencoder needs at least "
                    f"{_FEWEST_INPUTS}; take representation.scope=all, or another representation"
                )

    def _budget(self, device: torch.device) -> float:
        return _SHARE * free_memory(device) if self.memory_gb is None else self.memory_gb * 1e9

    def _bytes(self, zoo: Zoo, unit: str) -> int:
        return member_bytes(self.new_module(zoo, unit), len(zoo), self.batch_size, self.val_share)

    def _lanes(self, zoo: Zoo, units: Sequence[str], device: torch.device) -> int:
        """How many units at once: on a CPU a thread each, as many as memory holds."""
        if device.type != "cpu":
            return 1
        widest = max(units, key=lambda unit: self._inputs(zoo, unit))
        # the rows too, as they are read, and in float64 as they are scaled
        one = self._bytes(zoo, widest) + 24 * len(zoo) * self._inputs(zoo, widest)
        return max(1, min(torch.get_num_threads(), int(self._budget(device) // one)))

    def _chunks(self, zoo: Zoo, units: Sequence[str], device: torch.device) -> list[list[str]]:
        """Units that are trained as one stack: of one architecture, as many as memory holds; on a CPU one each."""
        if device.type == "cpu":
            return [[unit] for unit in units]
        alike: dict[str, list[str]] = {}
        for unit in units:
            alike.setdefault(str({**self._architecture(zoo, unit), "seed": None}), []).append(unit)
        found = []
        for group in alike.values():
            size = max(1, int(self._budget(device) // self._bytes(zoo, group[0])))
            found += [group[start : start + size] for start in range(0, len(group), size)]
        return found

    def _train(
        self, zoo: Zoo, units: Sequence[str], device: torch.device, stopped: threading.Event
    ) -> dict[str, FittedUnit]:
        """Autoencoders of units that make one stack."""
        modules, inputs = [], []
        for unit in units:
            module = self.new_module(zoo, unit).to(device)
            if module.sketches:
                for (omega, psi), name in zip(module.sketches, self._modules(zoo, unit), strict=True):
                    learned = sketch_of(zoo, name, self.sketch, unit_seed(self.seed, name), device)
                    omega.copy_(learned[0])
                    psi.copy_(learned[1])
            raw = self._read(zoo, unit, module, 0, len(zoo))
            if bool((raw == raw[0]).all()):
                raise LorabenchError(
                    f"{self.name}: unit {unit} of {zoo.name} is the same in all {len(zoo)} training adapters; there is "
                    "nothing to learn from it. Leave these layers out of the data set, or take another representation"
                )
            module.calibrate(raw)
            modules.append(module)
            inputs.append(module.standardised(raw))
            del raw
        stacked = torch.stack(inputs)
        del inputs
        schooling = Schooling(self.batch_size, self.epochs, self.patience, self.val_share)

        def go_on() -> None:
            if stopped.is_set():
                raise InterruptedError("nobody waits for this autoencoder any more")

        classes = classes_of(zoo) if self.supervised else None
        courses = fit_together(modules, stacked, schooling, go_on, classes)
        found = zip(units, modules, courses, stacked, strict=True)
        return {unit: self._judged(zoo, unit, module, course, rows) for unit, module, course, rows in found}

    def _judged(
        self, zoo: Zoo, unit: str, module: AutoEncoder, course: Course, rows: Float32[Tensor, "n d"]
    ) -> FittedUnit:
        """A trained unit and what is to know of it."""
        if course.error is not None:
            raise LorabenchError(
                f"{self.name}, unit {unit}: {course.error}; a lower representation.learning_rate than "
                f"{self.learning_rate} may help"
            )
        classes = classes_of(zoo) if self.supervised else None
        held = split_rows(module.seed, len(zoo), self.val_share, classes)[1]
        told = [] if classes is None else [classes[held].to(rows.device)]
        set_keys(module, module.seed, JUDGED)
        with torch.no_grad():
            known = module.eval().diagnostics(rows[held.to(rows.device)], *told)
            features = module.features(rows)
        known["constant_features"] = int((features.std(0, correction=0) <= _CONSTANT).sum())
        notes = {"history": course.history, "best_epoch": course.best_epoch, "diagnostics": known}
        layers = self.layers_of(zoo, unit)
        return FittedUnit(layers, shapes_of(zoo, layers), self._architecture(zoo, unit), notes, module.cpu())
