"""Checkpoints of one training, told by how their files and folders are called."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabench.adapters.reading.folders import AdapterPlace

__all__ = ["Series", "as_one", "in_series"]

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
        unit: what the steps count: "step" of the optimiser, "epoch", or "checkpoint", where they are the order alone.
    """

    name: Path
    places: tuple[AdapterPlace, ...]
    steps: tuple[int | None, ...]
    unit: str = "step"


def in_series(places: Sequence[AdapterPlace]) -> list[Series]:
    """The adapters, in their order, with the checkpoints of one training together.

    >>> paths = [Path(name) for name in ("run/checkpoint-100", "run/checkpoint-50", "run/final", "r/rank4", "r/rank8")]
    >>> [(str(one.name), one.steps) for one in in_series([AdapterPlace(path, path / "a.bin") for path in paths])]
    [('run/checkpoint-…', (50, 100)), ('run/final', (None,)), ('r/rank4', (None,)), ('r/rank8', (None,))]
    """
    called = {place: _called(place.path) for place in places}
    trainings: dict[Path, dict[AdapterPlace, int]] = {}
    ends: dict[Path, Path] = {}
    for place, name in called.items():
        if name is not None:
            trainings.setdefault(name.training, {})[place] = name.step
            if name.end is not None:
                ends[name.end] = name.training
    for place in places:
        if place.path in ends:  # its own number is not told: it comes after the others
            training = trainings[ends[place.path]]
            training[place] = max(training.values()) + 1
    training_of = {place: one for one, steps in trainings.items() for place in steps if len(steps) > 1}
    series = {}
    for place in places:
        key = training_of.get(place, place.path)
        steps: dict[AdapterPlace, int | None] = {**trainings[key]} if place in training_of else {place: None}
        ordered = sorted(steps, key=lambda one: steps[one] or 0)
        names = [name for one in ordered if (name := called[one]) is not None]
        shared = {name.but_step for name in names}
        common = shared.pop() if len(ordered) > 1 and len(shared) == 1 else key
        unit = "epoch" if any(name.epochs for name in names) else "step"
        series[key] = Series(common, tuple(ordered), tuple(steps[one] for one in ordered), unit)
    return list(series.values())


def as_one(places: Sequence[AdapterPlace]) -> Series:
    """The adapters as checkpoints of one training: by the steps that all names say, or else in the order given.

    >>> paths = [Path(name) for name in ("b/style-000010.safetensors", "a/style-000002.safetensors")]
    >>> as_one([AdapterPlace(path, path) for path in paths]).steps, as_one([AdapterPlace(Path("a"), paths[0])]).steps
    ((2, 10), (None,))
    >>> as_one([AdapterPlace(path, path) for path in paths]).unit
    'epoch'
    """
    without_folders = [AdapterPlace(Path(place.path.name), place.file) for place in places]
    for called in (places, without_folders):
        first, *others = in_series(called)
        if not others and len(set(first.steps)) == len(places):
            return first
    return Series(places[-1].path, tuple(places), tuple(range(1, len(places) + 1)), "checkpoint")


@dataclass(frozen=True)
class _Called:
    """What a path says.

    Attributes:
        but_step: the path without its step.
        training: the path without its epoch too, where it has both.
        step: the number.
        end: what the training's last file is called; None where trainers number it.
        epochs: whether the number counts epochs.
    """

    but_step: Path
    training: Path
    step: int
    end: Path | None = None
    epochs: bool = False


def _called(path: Path) -> _Called | None:
    name = path.stem if path.suffix in (".safetensors", ".npz", ".bin", ".pt", ".pth") else path.name
    ending = path.name.removeprefix(name)  # the same weights in another format are no further step
    kohya = _KOHYA.search(name)
    found = list(_STEP.finditer(name)) if kohya is None else [kohya]
    if not found:
        return None
    epochs = [one for one in found if one.lastgroup == "epoch"]
    step = ([one for one in found if one not in epochs] or found)[-1]

    def without(*numbers: re.Match[str]) -> Path:
        masked = name
        for one in sorted(numbers, key=re.Match.start, reverse=True):
            start, end = one.span(one.lastgroup or 0)
            masked = f"{masked[:start]}…{masked[end:]}"
        return path.with_name(f"{masked}{ending}")

    end = None if kohya is None else path.with_name(f"{name[: kohya.start()]}{ending}")
    by_epochs = step in epochs or (kohya is not None and "step" not in kohya[0])
    training = without(step, *set(epochs) - {step})
    return _Called(without(step), training, int(step[step.lastgroup or 0]), end, by_epochs)
