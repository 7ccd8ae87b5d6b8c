"""An audit: every adapter at a path, checkpoints of one training as a trajectory, and what the rules say of each."""

import functools
import multiprocessing
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lorabench.adapters.adapter import Adapter
from lorabench.adapters.reading.files import load
from lorabench.adapters.reading.folders import AdapterPlace, adapter_files
from lorabench.adapters.reading.header import ADAPTER_SUFFIXES, FOLDER_FILES, explain_reading, find_adapter_file
from lorabench.errors import LorabenchError
from lorabench.health.alerts import SEVERITIES, Alert, Watch
from lorabench.health.base import BaseFile, MisfitError, Sizes, against_base, not_held
from lorabench.health.metrics import LoRAAdapterMetrics, module_metrics
from lorabench.health.rules.base import Thresholds
from lorabench.health.series import Series, as_one, in_series
from lorabench.health.structure import LoRAStructuralMetrics, structural_metrics
from lorabench.health.summaries import infinite
from lorabench.health.trajectory import LoRADynamicsMetrics, Snapshot, dynamics, medians
from lorabench.progress import bar

__all__ = ["Audit", "audit"]

_MANY = 100  # adapters; fewer are done before processes have started


class _UnlikeError(LorabenchError):
    """Files that are called as one training's are adapters of several models."""


@dataclass(frozen=True)
class Audit:
    """One adapter, or the checkpoints of one training; what is said is of the last.

    Attributes:
        name: its path.
        files: that were read, by their steps.
        snapshots: the metrics of every module at each of them.
        structure: of the adapter as a whole; None where it could not be read.
        dynamics: of every module, where there are checkpoints.
        alerts: what the rules say, the gravest first; of checkpoints also what ceased before the last, with its step.
        ceased: rules of alerts that have ceased, as they judged a later checkpoint and said nothing.
        unsupported: kind -> how many tensors were no part of a ΔW, and are not judged.
        skipped: checkpoints that could not be read, and why; an error, though the others are judged.
        unreadable: why it could not be read, of checkpoints not one, or held against the base; None where it could.
        misfit: whether that is because the base is another model's.
        beside: what was not held against the base, and why.
    """

    name: Path
    files: Sequence[Path]
    snapshots: Sequence[Snapshot] = ()
    structure: LoRAStructuralMetrics | None = None
    dynamics: Sequence[LoRADynamicsMetrics] = ()
    alerts: Sequence[Alert] = ()
    ceased: Collection[str] = ()
    unsupported: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[Path, str] = field(default_factory=dict)
    unreadable: str | None = None
    misfit: bool = False
    beside: Sequence[str] = ()

    @property
    def unit(self) -> str:
        """What the snapshots' steps count."""
        return self.snapshots[-1].unit if self.snapshots else "step"

    @property
    def rows(self) -> Sequence[LoRAAdapterMetrics]:
        """The modules' metrics, at the last step."""
        return list(self.snapshots[-1].rows.values()) if self.snapshots else []

    @property
    def severity(self) -> str | None:
        """The gravest of its alerts that have not ceased; "error" where it cannot be read; None where there is none."""
        if self.unreadable is not None or self.skipped:
            return "error"
        standing = [alert.severity for alert in self.alerts if alert.rule not in self.ceased]
        return max(standing, key=SEVERITIES.index, default=None)

    @property
    def faults(self) -> list[str]:
        """What could not be judged, and why: a line for the adapter, or for every checkpoint."""
        if self.unreadable is not None:
            return [f"{'does not fit the base' if self.misfit else 'not readable'}: {self.unreadable}"]
        return [f"not readable: {reason}" for reason in self.skipped.values()]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "files": self.files,
            "severity": self.severity,
            "unreadable": self.unreadable,
            "misfit": self.misfit,
            "not_held_against_base": self.beside,
            "skipped": self.skipped,
            "alerts": [asdict(alert) for alert in self.alerts],
            "ceased": self.ceased,
            "structure": None if self.structure is None else asdict(self.structure),
            "modules": [_as_dict(row) for row in self.rows],
            "dynamics": [asdict(one) for one in self.dynamics],
            "unit": self.unit,
            "steps": [one.step for one in self.snapshots] if len(self.snapshots) > 1 else [],
            "trajectory": [asdict(medians(one)) for one in self.snapshots] if len(self.snapshots) > 1 else [],
            "unsupported": self.unsupported,
        }


def _as_dict(row: LoRAAdapterMetrics) -> dict[str, Any]:
    found = {**asdict(row), "dominance": row.dominance, "effective_lr_scale": row.effective_lr_scale}
    return {**found, "infinite": infinite(found)}


def audit(
    path: Path | str | Sequence[Path | str],
    base: Path | str | None = None,
    rules: Collection[str] | None = None,
    thresholds: Mapping[str, Thresholds] | None = None,
    count_intruders: bool = False,
    processes: int = 1,
    together: bool = False,
) -> list[Audit]:
    """Look at one adapter, at several, or at all below a folder.

    Args:
        path: a file, a PEFT folder, a folder of any of them, or several; what cannot be read among several is told as
            such.
        base: a safetensors file or folder of the base model, for dominance and the scale.
        rules: names of the rules that are asked; None: those that are asked without.
        thresholds: of `lorabench.health.read_thresholds`; None: the project's own.
        count_intruders: whether to count intruder dimensions, two dense SVDs a module.
        processes: that share a folder of a hundred adapters and more; with more than one the caller's module has to
            be importable (`if __name__ == "__main__":`), as `multiprocessing` asks.
        together: whether all are checkpoints of one training, whatever they are called (see `series.as_one`).

    Raises:
        LorabenchError: nothing is there, the only adapter cannot be read, or no adapter has the base's modules.
    """
    paths = [Path(path)] if isinstance(path, Path | str) else [Path(one) for one in path]
    places = list(dict.fromkeys(place for one in paths for place in _places(one, len(paths) > 1)))
    series = [as_one(places)] if together else in_series(places)
    weights = None if base is None else BaseFile.open(Path(base))
    Watch(thresholds, rules)  # wrong names are told before anything is read
    work = functools.partial(
        _judged, base=weights, rules=rules, thresholds=thresholds, count_intruders=count_intruders,
        alone=len(series) == 1,
    )  # fmt: skip
    if processes < 2 or len(series) < _MANY:
        with bar("Auditing", sum(len(one.places) for one in series)) as shown:
            return work(series, shown.advance)
    # Python's own work is most of it, so threads would wait for each other.
    step = -(-len(series) // (4 * processes))
    parts = [series[start : start + step] for start in range(0, len(series), step)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = []
        with bar("Auditing", len(series)) as shown:
            for audits in pool.map(work, parts):
                found += audits
                shown.advance(len(audits))
        return found


def _judged(
    series: Sequence[Series],
    looked: Callable[[], object] = lambda: None,
    *,
    base: BaseFile | None,
    rules: Collection[str] | None,
    thresholds: Mapping[str, Thresholds] | None,
    count_intruders: bool,
    alone: bool,
) -> list[Audit]:
    """One after another, `looked` told of each file; what is known of the base is kept for the next."""
    audits, sizes = [], Sizes()
    waiting = list(reversed(series))
    while waiting:
        one = waiting.pop()
        try:
            audits.append(_audited(one, base, Watch(thresholds, rules), count_intruders, sizes, looked))
        except _UnlikeError:
            waiting += reversed(_by_modules(one))
        except LorabenchError as error:
            if alone and one == series[0]:
                raise
            files, misfit = [place.file for place in one.places], isinstance(error, MisfitError)
            audits.append(Audit(one.name, files, unreadable=str(error), misfit=misfit))
    return audits


def _places(path: Path, several: bool) -> list[AdapterPlace]:
    """The adapters at a path. Among several, a file that all folders call alike is called by its folder."""
    with explain_reading(path):
        folder = path.is_dir()
    if not folder:
        file = find_adapter_file(path)
        return [AdapterPlace(path.parent if several and file.name in FOLDER_FILES else path, file)]
    places = adapter_files(path).adapters
    if not places:
        raise LorabenchError(
            f"{path}: no adapter below, no file ends in {', '.join(ADAPTER_SUFFIXES)}. Name a folder that holds some."
        )
    return places


def _by_modules(series: Series) -> list[Series]:
    """The series apart: one for all that change the same weights; what cannot be read stands alone."""
    groups: dict[object, dict[AdapterPlace, int | None]] = {}
    for place, step in zip(series.places, series.steps, strict=True):
        try:
            weights: object = _weights(load(place.file))
        except LorabenchError:
            weights = place
        groups.setdefault(weights, {})[place] = step
    return [
        Series(series.name, tuple(steps), tuple(steps.values()))
        if len(steps) > 1
        else Series(next(iter(steps)).path, tuple(steps), (None,))
        for steps in groups.values()
    ]


def _weights(adapter: Adapter) -> frozenset[tuple[str, tuple[int, int]]]:
    """What it changes: names and shapes, of which none goes with the rank."""
    return frozenset((name, module.shape) for name, module in adapter.modules.items())


def _audited(
    series: Series,
    base: BaseFile | None,
    watch: Watch,
    count_intruders: bool,
    sizes: Sizes,
    looked: Callable[[], object],
) -> Audit:
    said: dict[str, Alert] = {}
    files: list[Path] = []
    skipped: dict[Path, str] = {}
    unsupported: dict[str, int] = {}
    weights, beside = None, list[str]()
    for place, step in zip(series.places, series.steps, strict=True):
        try:
            adapter = load(place.file)
        except LorabenchError as error:
            if len(skipped) + 1 == len(series.places):  # not one of them can be read
                raise
            skipped[place.file] = str(error)
            looked()
            continue
        if weights not in (None, _weights(adapter)):
            raise _UnlikeError(f"{place.file}: changes other weights than {files[0]}.")
        weights = _weights(adapter)
        rows = module_metrics(adapter.modules)
        if base is not None:
            rows = against_base(rows, adapter.modules, base, adapter.transposed, count_intruders, sizes)
            beside = not_held(rows, adapter.modules)
        snapshot = Snapshot(step, {row.module: row for row in rows}, unit=series.unit)
        said |= {alert.rule: alert for alert in watch.look(snapshot, place == series.places[-1])}
        files.append(place.file)
        looked()
        unsupported = {kind: len(keys) for kind, keys in adapter.unsupported.items()}
    several = len(files) > 1
    return Audit(
        name=series.name,
        files=files,
        skipped=skipped,
        snapshots=list(watch.snapshots),
        structure=structural_metrics(list(watch.snapshots[-1].rows.values())),
        dynamics=dynamics(watch.snapshots) if several else (),
        alerts=sorted(said.values(), key=lambda alert: -SEVERITIES.index(alert.severity)),
        ceased=sorted(said.keys() - watch.standing),
        unsupported=unsupported,
        beside=beside,
    )
