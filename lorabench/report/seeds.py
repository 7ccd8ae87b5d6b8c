"""How much of an accuracy's spread is another zoo's, another fit's, another split's and another member's."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorabench.report.comparison import Cell, Standing
from lorabench.report.numbers import percent
from lorabench.sheet import Sheet

__all__ = ["Spread", "seed_sheet", "spread_row", "spreads"]

_OF_FIT = "seed"
"""The option of a representation that draws what its fit is drawn by."""


@dataclass(frozen=True)
class Spread:
    """Variance components of a representation's test accuracy, over runs that differ in a seed of zoo or fit.

    By the method of moments (Searle, Casella & McCulloch 1992, ch. 3), none below 0; NaN where there is one of a kind.

    Attributes:
        cell: one of the cells that it is made of.
        zoos: how many zoos, drawn by other seeds.
        fits: how many seeds of the representation.
        zoo: of another zoo.
        fit: of another fit of the representation on the same split.
        split: of another split of one zoo; the fit's is in it where `fit` is NaN.
        member: of another member of one split; where a split has one member, `split` is NaN and all of it is here.
    """

    cell: Cell
    zoos: int
    fits: int
    zoo: float
    fit: float
    split: float
    member: float


def spreads(rows: Sequence[Standing]) -> list[Spread]:
    """Of every representation that several zoos or several fits tell of.

    Args:
        rows: the cells of all runs.
    """
    groups: dict[tuple[object, ...], dict[tuple[str, str], Cell]] = {}
    for cell in (row.cell for row in rows):
        if cell.accuracy:
            groups.setdefault(_group(cell), {})[_seeds_of_zoo(cell), cell.settings.get(_OF_FIT, "")] = cell
    return [_spread(cells) for cells in groups.values() if len(cells) > 1]


def _is_seed_of_zoo(option: str) -> bool:
    return option.startswith("dataset.") and option.endswith("seed")


def _seeds_of_zoo(cell: Cell) -> str:
    return str(sorted(item for item in cell.place.items() if _is_seed_of_zoo(item[0])))


def _group(cell: Cell) -> tuple[object, ...]:
    """All that a cell is known by but those seeds, and the zoo's content, which changes with them."""
    place = sorted(item for item in cell.place.items() if not _is_seed_of_zoo(item[0]))
    settings = sorted(item for item in cell.settings.items() if item[0] != _OF_FIT)
    return (
        cell.dataset, cell.target, cell.classifier, cell.representation, cell.top_k, tuple(place), tuple(settings)
    )  # fmt: skip


def _spread(cells: Mapping[tuple[str, str], Cell]) -> Spread:
    zoos, fits = (len(set(seeds)) for seeds in zip(*cells, strict=True))
    around = _mean([cell.variance.split for cell in cells.values()])  # every split has a fit of its own: that is in it
    member = _mean([cell.variance.member for cell in cells.values()])
    fit = _mean([_of_fits(own, _or_0(member)) for own in _shared(cells, 0)])
    zoo = _mean([_of_zoos(own, _or_0(around), _or_0(member)) for own in _shared(cells, 1)])
    split = max(0.0, around - _or_0(fit)) if not math.isnan(around) else math.nan
    return Spread(next(iter(cells.values())), zoos, fits, zoo, fit, split, member)


def _shared(cells: Mapping[tuple[str, str], Cell], which: int) -> list[list[Cell]]:
    """The cells of one zoo (0), or of one seed of the fit (1), where there are several."""
    found: dict[str, list[Cell]] = {}
    for seeds, cell in cells.items():
        found.setdefault(seeds[which], []).append(cell)
    return [own for own in found.values() if len(own) > 1]


def _of_fits(cells: Sequence[Cell], member: float) -> float:
    """Of the means of a split, over fits, less what the members of a split leave; mean over the splits of all fits."""
    shared = set.intersection(*(set(cell.split_means) for cell in cells))
    if not shared:
        return math.nan
    means = _mean([statistics.variance([cell.split_means[split] for cell in cells]) for split in sorted(shared)])
    members = _mean([len(cell.accuracy) / cell.splits for cell in cells])
    return max(0.0, means - member / members)


def _of_zoos(cells: Sequence[Cell], per_split: float, member: float) -> float:
    """Of the zoos' means, less what their splits, with a fit each, and members leave."""
    left = _mean([per_split / cell.splits + member / len(cell.accuracy) for cell in cells])
    return max(0.0, statistics.variance([cell.mean for cell in cells]) - left)


def spread_row(one: Spread) -> dict[str, Any]:
    """As data: standard deviations as shares."""
    cell = one.cell
    return {
        "dataset": cell.dataset,
        "target": cell.target,
        "classifier": cell.classifier,
        "representation": cell.representation,
        "top_k": cell.top_k,
        "zoos": one.zoos,
        "fits": one.fits,
        **{f"{part}_std": math.sqrt(getattr(one, part)) for part in ("zoo", "fit", "split", "member")},
    }


def _or_0(part: float) -> float:
    return 0.0 if math.isnan(part) else part


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def seed_sheet(found: Sequence[Spread]) -> Sheet:
    """A line a representation; standard deviations in percent."""
    return Sheet(
        title="Spread of test accuracy by what is drawn anew",
        columns=(
            "data", "target", "classifier", "representation", "layers", "zoos", "fits", "zoo", "fit", "split", "member"
        ),
        rows=[
            (
                one.cell.dataset, one.cell.target, one.cell.classifier, one.cell.representation,
                f"without best {one.cell.top_k}" if one.cell.top_k else "all", str(one.zoos), str(one.fits),
                *(percent(math.sqrt(part)) for part in (one.zoo, one.fit, one.split, one.member)),
            )
            for one in found
        ],
        caption=[
            "standard deviations in %, by the method of moments: 0.0 where the parts within account for all of it",
            "fit: the representation's seed, on the same split; member: of the same split; –: there is but one",
        ],
        text=("data", "target", "classifier", "representation", "layers"),
    )  # fmt: skip
