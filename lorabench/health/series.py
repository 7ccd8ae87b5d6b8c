"""Checkpoints of one training, told by how their files and folders are called."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabench.adapters.reading.folders import AdapterPlace

__all__ = ["Series", "in_series"]

_STEP = re.compile(
    r"""(?:checkpoint|step|iter(?:ation)?|epoch)[-_]?(?P<named>\d+)  # transformers, diffusers, most scripts
      | (?P<mlx>\d{5,})(?=_adapters)                                 # MLX: 0000100_adapters
      | (?<=-)(?P<kohya>0\d{5})$                                     # kohya: name-000004; name-240131 is a day""",
    re.IGNORECASE | re.VERBOSE,
)


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
    trainings: dict[Path, list[tuple[int, AdapterPlace]]] = {}
    for place in places:
        name, step = _without_step(place.path)
        if step is not None:
            trainings.setdefault(name, []).append((step, place))
    series = []
    for place in places:
        name, step = _without_step(place.path)
        found = trainings.get(name, []) if step is not None else []
        if len(found) < 2:
            series.append(Series(place.path, (place,), (None,)))
        elif found[0][1] == place:
            ordered = sorted(found, key=lambda pair: pair[0])
            series.append(Series(name, tuple(one for _, one in ordered), tuple(number for number, _ in ordered)))
    return series


def _without_step(path: Path) -> tuple[Path, int | None]:
    name = path.stem if path.suffix in (".safetensors", ".npz", ".bin", ".pt", ".pth") else path.name
    found = list(_STEP.finditer(name))
    if not found:
        return path, None
    number = found[-1].lastgroup or "named"
    start, end = found[-1].span(number)
    ending = path.name.removeprefix(name)  # the same weights in another format are no further step
    return path.with_name(f"{name[:start]}…{name[end:]}{ending}"), int(found[-1][number])
