"""Evaluates representations in arms: features, members, outcomes."""

import contextlib
import functools
import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from lorabench.classifiers import ClassifierFactory, Columns, Problem, Streamed, probe
from lorabench.data import UnitsOfFile, side_by_side, streamed
from lorabench.engines import Engine
from lorabench.errors import LorabenchError
from lorabench.evaluation.arm import Arm, Evaluation, Probe
from lorabench.evaluation.clock import Clock
from lorabench.evaluation.journal import Journal, digest, source_code
from lorabench.evaluation.members import Record, Trained, train
from lorabench.evaluation.memory import Room, Together, together
from lorabench.machine import free_memory
from lorabench.progress import bar
from lorabench.representations import Representation
from lorabench.representations.cache import features_as_they_come
from lorabench.representations.factors import Factors
from lorabench.representations.learned import Learned
from lorabench.representations.load_from import Loaded
from lorabench.results import Run
from lorabench.zoo import ModuleShape, Zoo
from lorabench.zoo.splits import Split

__all__ = ["Evaluator"]

_LOG = logging.getLogger(__name__)

_UNIT_COPIES = 8  # of one unit while it is standardised in float64 and waits to be written; two are made at a time
_OF_DATA = ("in_features", "n_classes", "seed", "shapes")  # of a classifier's arguments: no settings
_UnitKey = tuple[str, tuple[str, ...]]
"""A unit and the layers that it is computed from."""


def _unheard(*_: object) -> None:
    """Nobody listens."""


@dataclass
class Evaluator:
    """Evaluates representations on one zoo, one split and one classifier.

    Attributes:
        zoo: all N adapters and layers.
        split: which adapters are trained on, decide when to stop, and are tested on.
        labels: class of every adapter, [N]; -1 outside the split.
        n_classes: number of classes.
        values: the number that each class stands for, [n_classes]; None where classes have no order.
        factory: makes a member's classifier.
        engine: trains the members.
        device: where features and members are computed.
        seeds: of the members of every arm.
        cache_dir: keeps features, and finished members.
        resume: whether finished members are kept there, and taken from there.
        clock: takes the time of every phase.
        on_fitted: called with a learned representation's name, itself, and its features of every unit, once it is
            fitted on all layers.
        on_curves: called with a representation's name and its runs, for arms in which all layers stand.
        streams: names of the representations whose features did not fit into memory, and were read from a file.
        tally: of members, here and in all that was made of this evaluator by `dataclasses.replace`.
    """

    zoo: Zoo
    split: Split
    labels: Int64[np.ndarray, " n"]
    n_classes: int
    factory: ClassifierFactory
    engine: Engine
    device: torch.device
    seeds: tuple[int, ...]
    cache_dir: Path
    values: Float64[np.ndarray, " classes"] | None = None
    resume: bool = True
    clock: Clock = field(default_factory=Clock)
    on_fitted: Callable[[str, Learned | Loaded, Mapping[str, Tensor]], None] = _unheard
    on_curves: Callable[[str, Sequence[Run]], None] = _unheard
    streams: set[str] = field(default_factory=set)
    tally: Counter[str] = field(default_factory=Counter)

    @property
    def trained(self) -> int:
        """Members that were trained."""
        return self.tally["trained"]

    @property
    def taken(self) -> int:
        """Members that an earlier run, or an earlier phase of this one, had trained."""
        return self.tally["taken"]

    def aside(self) -> "Evaluator":
        """The same, of which nobody hears what it has fitted and trained: its adapters are not those of the run."""
        return replace(self, on_fitted=_unheard, on_curves=_unheard)

    @property
    def everything(self) -> tuple[str, ...]:
        """All layers."""
        return tuple(self.zoo.layers)

    def evaluate(
        self, name: str, representation: Representation, arms: Sequence[Arm], probe: Probe | None = None
    ) -> list[Evaluation]:
        """Train the members of all arms together, `seeds` each, and test them.

        Features of a layer or module do not depend on the layers beside it, so they are computed once for all
        arms; a representation of the whole adapter is computed anew for every arm.

        Args:
            name: what results call the representation.
            representation: makes the features.
            arms: the sets of layers to compare.
            probe: what else to measure on every member.

        Returns:
            One evaluation an arm, in order. An arm in which the representation has no unit left has an `error`.

        Raises:
            LorabenchError: features cannot be made, or the engine needs them in memory and they do not fit.
        """
        standing = [self._standing(representation, arm) for arm in arms]
        reached = {i: Evaluation(name, one.arm, error=one.error) for i, one in enumerate(standing) if not one.units}
        for batch in self._together(name, representation, standing):
            own = [standing[i] for i in batch.arms]
            reached |= zip(batch.arms, self._evaluated(name, representation, own, batch.pool_bytes, probe), strict=True)
        found = [reached[i] for i in range(len(standing))]
        for one in found:
            if one.runs and one.arm.name == "none":
                self.on_curves(name, one.runs)
        return found

    def _evaluated(
        self,
        name: str,
        representation: Representation,
        standing: Sequence["_Standing"],
        pool_bytes: int | None,
        probe: Probe | None,
    ) -> list[Evaluation]:
        """The evaluations of arms whose features are in memory, or in a file, at one time."""
        wanted = list(dict.fromkeys(key for one in standing for key in one.units))
        with contextlib.ExitStack() as opened:
            with self.clock.phase(f"features/{name}"):
                inputs: Tensor | Streamed
                if pool_bytes is None:
                    inputs, columns = self._inputs(name, representation, wanted)
                else:
                    inputs, columns = self._streamed(name, representation, wanted, pool_bytes, opened)
            with self.clock.phase(f"training/{name}"):
                records = train(self, name, self._trained(representation, standing, inputs, columns, probe))
        return [self._evaluation(name, one, columns, rows) for one, rows in zip(standing, records, strict=True)]

    def permuted(self, seed: int) -> Int64[np.ndarray, " n"]:
        """The labels, shuffled by `seed` within the training, the validation and the test rows."""
        rng = np.random.default_rng([seed, 0x9E37])
        labels = self.labels.copy()
        for rows in (self.split.train, self.split.val, self.split.test):
            labels[rows] = self.labels[rng.permutation(rows)]
        return labels

    @functools.cached_property
    def journal(self) -> Journal:
        """The finished members of this zoo, split, classifier, engine and code."""
        if not self.resume:
            return Journal(None)
        model = probe(self.factory)
        own = {key: value for key, value in model.hparams.items() if key not in _OF_DATA}
        rows = (*vars(self.split).values(), self.labels)
        context = digest(
            zoo=self.zoo.fingerprint,
            values=None if self.values is None else self.values.tolist(),
            rows=[hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest() for part in rows],
            classifier=[type(model).__module__, type(model).__qualname__, own],
            engine=[type(self.engine).__name__, self.device.type, torch.__version__],
            code=source_code(),
        )
        return Journal(self.cache_dir / "members" / f"{context}.jsonl")

    def _standing(self, representation: Representation, arm: Arm) -> "_Standing":
        """The units that stand in an arm, or why there is none."""
        zoo = self.zoo.only(arm.layers)
        try:
            units = [(unit, representation.layers_of(zoo, unit)) for unit in representation.units(zoo)]
            if representation.unit == "all":
                representation.feature_names(zoo, "all")  # an autoencoder of all layers that was taken knows no fewer
            return _Standing(arm, units)
        except LorabenchError as error:
            if arm.layers == self.everything:
                raise
            return _Standing(arm, error=str(error))

    def _inputs(
        self, name: str, representation: Representation, wanted: Sequence[_UnitKey]
    ) -> tuple[Float32[Tensor, "n f"], dict[_UnitKey, slice]]:
        """Standardised features of all units side by side, and every unit's columns."""
        found = dict(self._features(name, representation, wanted))
        for layers, units in _by_layers(representation, wanted).items():
            self._tell_of(name, representation, {key[0]: found[_text(key)] for key in units}, layers)
        ordered = {_text(key): found.pop(_text(key)) for key in wanted}
        train_rows = torch.from_numpy(self.split.train) if representation.standardised else None
        inputs, columns = side_by_side(ordered, train_rows, self.device)
        return inputs, {key: columns[_text(key)] for key in wanted}

    def _streamed(
        self,
        name: str,
        representation: Representation,
        wanted: Sequence[_UnitKey],
        pool_bytes: int,
        opened: contextlib.ExitStack,
    ) -> tuple[Streamed, dict[_UnitKey, slice]]:
        """The same in a file, which is there until `opened` is closed."""
        stops = list(itertools.accumulate(self._width(representation, key) for key in wanted))
        columns = {key: slice(start, stop) for key, start, stop in zip(wanted, [0, *stops], stops, strict=False)}
        rest = np.setdiff1d(np.arange(len(self.zoo)), np.concatenate([self.split.train, self.split.val]))
        order = torch.from_numpy(self.split.train), torch.from_numpy(np.concatenate([self.split.val, rest]))
        features = self._features(name, representation, wanted)
        by_text = {_text(key): part for key, part in columns.items()}
        folder, scaled = self.cache_dir / "streams", representation.standardised
        writing = streamed(features, by_text, order, folder, self.device, pool_bytes, scaled)
        inputs = opened.enter_context(writing)
        self.streams.add(name)
        _LOG.info(
            "%s: %d features of %d adapters are read from a file while members train, by %.3g GB a member",
            name, inputs.width, len(inputs), pool_bytes / 1e9,
        )  # fmt: skip
        for layers, units in _by_layers(representation, wanted).items():
            own = UnitsOfFile(inputs, {key[0]: columns[key] for key in units})
            self._tell_of(name, representation, own, layers)
        return inputs, columns

    def _features(
        self, name: str, representation: Representation, wanted: Sequence[_UnitKey]
    ) -> Iterator[tuple[str, Float32[Tensor, "n f"]]]:
        """Features of all units as they come, each with the text of its key."""
        with bar(f"Features {name}", len(wanted)) as shown:
            for layers, units in _by_layers(representation, wanted).items():
                keys = {key[0]: key for key in units}
                zoo = self.zoo.only(layers)
                for unit, features in features_as_they_come(
                    representation, zoo, self.split.train, self.cache_dir, self.device, self.labels
                ):
                    if unit in keys:  # layers of two modules may pair up with each other
                        yield _text(keys[unit]), features
                        shown.advance()

    def _tell_of(
        self, name: str, representation: Representation, own: Mapping[str, Tensor], layers: Collection[str]
    ) -> None:
        if not isinstance(representation, Learned | Loaded) or set(own) != set(representation.units(self.zoo)):
            return
        if {layer for unit in own for layer in representation.layers_of(self.zoo, unit)} <= set(layers):
            self.on_fitted(name, representation, own)

    def _trained(
        self,
        representation: Representation,
        standing: Sequence["_Standing"],
        inputs: Float32[Tensor, "n f"] | Streamed,
        columns: dict[_UnitKey, slice],
        probe: Probe | None,
    ) -> Trained:
        train, val = (torch.from_numpy(part).to(self.device) for part in (self.split.train, self.split.val))
        labels = [self.labels]
        if any(one.arm.permuted for one in standing):
            labels += [self.permuted(seed) for seed in self.seeds]
        sets = tuple(_joined([columns[key] for key in one.units], self.device) for one in standing)
        onto = torch.from_numpy(np.stack(labels)).to(self.device)
        shapes: tuple[tuple[ModuleShape, ...], ...] = ()
        if isinstance(representation, Factors):
            shapes = tuple(tuple(self.zoo.shape_of(unit) for unit, _ in one.units) for one in standing)
        problem = Problem(inputs, onto, train, val, self.n_classes, sets, shapes)
        widths = [{key[0]: _length(columns[key]) for key in one.units} for one in standing]
        # From a file, members see rows in another order, which follows from the size of a pool and of a row.
        read = {"streamed": [inputs.pool_bytes, inputs.width]} if isinstance(inputs, Streamed) else {}
        keys = [
            {"representation": representation.config(), "units": one.units, "permuted": one.arm.permuted, **read}
            for one in standing
        ]
        return Trained(problem, keys, widths, [one.arm for one in standing], probe)

    def _evaluation(
        self,
        name: str,
        standing: "_Standing",
        columns: dict[_UnitKey, slice],
        records: Sequence[Record],
    ) -> Evaluation:
        arm = standing.arm
        labels = np.stack([self.permuted(seed) if arm.permuted else self.labels for seed in self.seeds])
        runs = [Run(name, arm.name, seed, **one.measured) for seed, one in zip(self.seeds, records, strict=True)]
        val, test = np.stack([one.val for one in records]), np.stack([one.test for one in records])
        return Evaluation(
            representation=name,
            arm=arm,
            runs=tuple(runs),
            units=tuple(unit for unit, _ in standing.units),
            features=sum(_length(columns[key]) for key in standing.units),
            val=val,
            test=test,
            test_labels=labels[:, self.split.test],
            val_correct=val == labels[:, self.split.val],
            test_correct=test == labels[:, self.split.test],
            probes=tuple(one.probed for one in records),
        )

    def _width(self, representation: Representation, key: _UnitKey) -> int:
        return len(representation.feature_names(self.zoo.only(key[1]), key[0]))

    def _together(self, name: str, representation: Representation, standing: Sequence["_Standing"]) -> list[Together]:
        """Which arms are evaluated at one time, and which of them from a file.

        Raises:
            LorabenchError: the engine has all features in memory, and they do not fit; or a single unit's do not.
        """
        keys = dict.fromkeys(key for one in standing for key in one.units)
        widths = {key: self._width(representation, key) for key in keys}
        asked = self.engine.memory_gb
        room = Room(
            allowed=free_memory(self.device) if asked is None else int(asked * 1e9),
            adapters=len(self.zoo),
            lanes=torch.get_num_threads() if self.device.type == "cpu" else 1,
        )
        parts = [one.arm.layers != self.everything and self.device.type == "cpu" for one in standing]
        found = together([{key: widths[key] for key in one.units} for one in standing], parts, room)
        if any(batch.pool_bytes is not None for batch in found):
            self._check_streaming(name, widths, room)
        return found

    def _check_streaming(self, name: str, widths: Mapping[_UnitKey, int], room: Room) -> None:
        floats, adapters = sum(widths.values()), len(self.zoo)
        if not self.engine.streams:
            raise LorabenchError(
                f"representation={name} makes {floats} numbers of each of {adapters} adapters, about "
                f"{room.needed(floats, parts=False) / 1e9:.1f} GB with the copies that training needs; "
                f"{room.allowed / 1e9:.1f} GB of memory are free, and trainer=lightning has all features in memory. "
                "Take trainer=stacked, which reads them from a file, or a shorter representation (spectral, delta_pca)"
            )
        unit, largest = max(widths.items(), key=lambda one: one[1])
        needed, free = 4 * _UNIT_COPIES * largest * adapters, free_memory(torch.device("cpu"))
        if needed > free:
            raise LorabenchError(
                f"representation={name} makes {largest} numbers of {unit[0]} of each of {adapters} adapters, "
                f"about {needed / 1e9:.1f} GB while they are standardised; {free / 1e9:.1f} GB of memory are free. "
                "Features are read from a file, but one unit is made in memory: take a smaller data set "
                "(dataset.per_category=N) or a shorter representation (spectral, delta_pca)"
            )


@dataclass(frozen=True)
class _Standing:
    """What is left of a representation in an arm."""

    arm: Arm
    units: list[_UnitKey] = field(default_factory=list)
    error: str | None = None


def _by_layers(representation: Representation, wanted: Sequence[_UnitKey]) -> dict[tuple[str, ...], list[_UnitKey]]:
    """The units of each set of layers that features are made of at one time: of a whole adapter, an arm's."""
    if representation.unit == "all":
        return {layers: [(unit, layers)] for unit, layers in wanted}
    return {tuple(dict.fromkeys(layer for _, layers in wanted for layer in layers)): list(wanted)}


def _length(columns: slice) -> int:
    return int(columns.stop) - int(columns.start)


def _text(key: _UnitKey) -> str:
    return "\n".join([key[0], *key[1]])


def _joined(parts: Sequence[slice], device: torch.device) -> Columns:
    """The columns of several units: one slice where they are neighbours, else their numbers."""
    if all(a.stop == b.start for a, b in itertools.pairwise(parts)):
        return slice(parts[0].start, parts[-1].stop)
    return torch.cat([torch.arange(part.start, part.stop, device=device) for part in parts])
