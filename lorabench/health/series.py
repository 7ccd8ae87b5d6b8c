"""Checkpoints of one training, told by how their files and folders are called."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabench.adapters.reading.folders import AdapterPlace

__all__ = ["Series", "in_series"]

_STEP = re.compile(
    r"""(?:checkpoint|step|iter(?:ation)?)[-_=]?(?P<named>\d+)   # transformers, diffusers, most scripts
      | epoch[-_=]?(?P<epoch>\d+)                               # which Lightning writes before the step
      | (?P<mlx>\d{5,})(?=_adapters)                            # MLX: 0000100_adapters""",
    re.IGNORECASE | re.VERBOSE,
)
_KOHYA = re.compile(r"-(?:step)?(?P<kohya>0\d{5}(?:\d\d)?)$")  # name-000004, name-step00000500; name-240131 is a day


@dataclass(frozen=True)
class Series:
    """One adapter, or the checkpoints of one training.

    Attributes:
        name: the adapter's path; of checkpoints the path that they have in common.
        places: of the files, by their steps.
        steps: of each; None of an adapter that stands alone.
    """

    name: Path
    places: tuple[AdapterPlace, ...]
    steps: tuple[int | None, ...]


def in_series(places: Sequence[AdapterPlace]) -> list[Series]:
    """The adapters, in their order, with the checkpoints of one training together.

    >>> paths = [Path(name) for name in ("run/checkpoint-100", "run/checkpoint-50", "run/final", "r/rank4", "r/rank8")]
    >>> [(str(one.name), one.steps) for one in in_series([AdapterPlace(path, path / "a.bin") for path in paths])]
    [('run/checkpoint-…', (50, 100)), ('run/final', (None,)), ('r/rank4', (None,)), ('r/rank8', (None,))]
    """
    trainings: dict[Path, dict[AdapterPlace, int]] = {}
    ends: dict[Path, Path] = {}
    for place in places:
        called = _called(place.path)
        if called is not None:
            trainings.setdefault(called.training, {})[place] = called.step
            if called.end is not None:
                ends[called.end] = called.training
    for place in places:
        if place.path in ends:  # its own number is not told: it comes after the others
            training = trainings[ends[place.path]]
            training[place] = max(training.values()) + 1
    names = {place: name for name, training in trainings.items() for place in training if len(training) > 1}
    series = {}
    for place in places:
        name = names.get(place, place.path)
        steps: dict[AdapterPlace, int | None] = {**trainings[name]} if place in names else {place: None}
        ordered = sorted(steps, key=lambda one: steps[one] or 0)
        series[name] = Series(name, tuple(ordered), tuple(steps[one] for one in ordered))
    return list(series.values())


@dataclass(frozen=True)
class _Called:
    """What a path says: the training it is of, its step, and what the training's end is called."""

    training: Path
    step: int
    end: Path | None = None


def _called(path: Path) -> _Called | None:
    name = path.stem if path.suffix in (".safetensors", ".npz", ".bin", ".pt", ".pth") else path.name
    ending = path.name.removeprefix(name)  # the same weights in another format are no further step
    kohya = _KOHYA.search(name)
    found = list(_STEP.finditer(name)) if kohya is None else [kohya]
    if not found:
        return None
    told = [one for one in found if one.lastgroup != "epoch"] or found
    step = told[-1]
    numbers = {step, *(one for one in found if one.lastgroup == "epoch")}
    masked = name
    for one in reversed(found):
        if one in numbers:
            start, end = one.span(one.lastgroup or 0)
            masked = f"{masked[:start]}…{masked[end:]}"
    end_name = None if kohya is None else path.with_name(f"{name[: kohya.start()]}{ending}")
    return _Called(path.with_name(f"{masked}{ending}"), int(step[step.lastgroup or 0]), end_name)
