"""How much of an accuracy's spread is another zoo's, another fit's, another split's and another member's."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorabench.report.comparison import Cell, differing
from lorabench.report.numbers import percent
from lorabench.sheet import Sheet

__all__ = ["Spread", "seed_sheet", "spread_row", "spreads"]

_OF_FIT = "seed"
"""The option of a representation that draws what its fit is drawn by."""


@dataclass(frozen=True)
class Spread:
    """Variance components of a representation's test accuracy, over runs that differ in a seed of zoo or fit.

    By the method of moments (Searle, Casella & McCulloch 1992, ch. 3), none below 0; NaN where nothing tells it from
    the others: a zoo under two splits of each, a fit or a split where a split has one member.

    Attributes:
        cell: one of the cells that it is made of.
        label: the representation, with the options that set it apart from others here, seeds left out.
        zoos: how many zoos, drawn by other seeds.
        fits: how many seeds of the representation.
        zoo: of another zoo.
        fit: of another fit of the representation on the same split.
        split: of another split of one zoo; the fit's is in it where `fit` is NaN.
        member: of another member of one split.
    """

    cell: Cell
    label: str
    zoos: int
    fits: int
    zoo: float
    fit: float
    split: float
    member: float


def spreads(given: Iterable[Cell]) -> list[Spread]:
    """Of every representation that several zoos or several fits tell of.

    Args:
        given: the cells of all runs.
    """
    groups: dict[tuple[object, ...], dict[tuple[str, str], Cell]] = {}
    for cell in given:
        if cell.accuracy:
            groups.setdefault(_group(cell), {})[_zoo(cell), cell.settings.get(_OF_FIT, "")] = cell
    told = [cells for cells in groups.values() if len(cells) > 1]
    return [_spread(cells, label) for cells, label in zip(told, _labels(told), strict=True)]


def _is_seed_of_zoo(option: str) -> bool:
    return option.startswith("dataset.") and option.endswith("seed")


def _zoo(cell: Cell) -> str:
    """What a zoo is known by: its seeds, and its content."""
    return str((cell.zoo, sorted(item for item in cell.place.items() if _is_seed_of_zoo(item[0]))))


def _options(cell: Cell) -> dict[str, str]:
    """Options of zoo, classifier and representation, without those seeds."""
    place = {name: value for name, value in cell.place.items() if not _is_seed_of_zoo(name)}
    return place | {name: value for name, value in cell.settings.items() if name != _OF_FIT}


def _group(cell: Cell) -> tuple[object, ...]:
    """All that a cell is known by but those seeds, and the zoo's content, which changes with them."""
    options = tuple(sorted(_options(cell).items()))
    return cell.dataset, cell.target, cell.classifier, cell.representation, cell.top_k, options


def _labels(groups: Sequence[Mapping[tuple[str, str], Cell]]) -> list[str]:
    cells = [next(iter(group.values())) for group in groups]
    found = []
    for cell in cells:
        apart = differing([_options(one) for one in cells if one.representation == cell.representation])
        own = [f"{name}={_options(cell)[name]}" for name in apart if name in _options(cell)]
        found.append(" ".join([cell.representation, *own]))
    return found


def _spread(cells: Mapping[tuple[str, str], Cell], label: str) -> Spread:
    zoos, fits = (len(set(seeds)) for seeds in zip(*cells, strict=True))
    member = _mean([_of_members(cell) for cell in cells.values()])
    fit = _mean([_of_fits(own, member) for own in _shared(cells, 0)])
    # Every split has a fit of its own, which makes a part of what is between splits.
    split = _mean([_between_splits(cell) - member / _members(cell) for cell in cells.values()])
    split -= 0.0 if math.isnan(fit) else fit
    zoo = _mean([_of_zoos(own) for own in _shared(cells, 1)])
    at_least_0 = [part if math.isnan(part) else max(0.0, part) for part in (zoo, fit, split, member)]
    return Spread(next(iter(cells.values())), label, zoos, fits, *at_least_0)


def _shared(cells: Mapping[tuple[str, str], Cell], which: int) -> list[list[Cell]]:
    """The cells of one zoo (0), or of one seed of the fit (1), where there are several."""
    found: dict[str, list[Cell]] = {}
    for seeds, cell in cells.items():
        found.setdefault(seeds[which], []).append(cell)
    return [own for own in found.values() if len(own) > 1]


def _members(cell: Cell) -> float:
    """Of a split, in the mean."""
    return len(cell.accuracy) / cell.splits


def _of_members(cell: Cell) -> float:
    """About the mean of their split; NaN where every split has one."""
    freedom = len(cell.accuracy) - cell.splits
    means = cell.split_means
    squares = sum((value - means[split]) ** 2 for (split, _), value in cell.accuracy.items())
    return squares / freedom if freedom else math.nan


def _between_splits(cell: Cell) -> float:
    """Of the means of splits, members' part within; NaN for one split."""
    return statistics.variance(cell.split_means.values()) if cell.splits > 1 else math.nan


def _of_fits(cells: Sequence[Cell], member: float) -> float:
    """Of the means of a split, over the fits that have it, less what the members of a split leave."""
    means: dict[int, list[float]] = {}
    for cell in cells:
        for split, mean in cell.split_means.items():
            means.setdefault(split, []).append(mean)
    several = [statistics.variance(own) for own in means.values() if len(own) > 1]
    return _mean(several) - member / _mean([_members(cell) for cell in cells])


def _of_zoos(cells: Sequence[Cell]) -> float:
    """Of the zoos' means, less what their splits leave, with all that is in these."""
    left = _mean([_between_splits(cell) / cell.splits for cell in cells])
    return statistics.variance([cell.mean for cell in cells]) - left


def spread_row(one: Spread) -> dict[str, Any]:
    """As data: standard deviations as shares."""
    cell = one.cell
    return {
        "dataset": cell.dataset,
        "target": cell.target,
        "classifier": cell.classifier,
        "representation": cell.representation,
        "label": one.label,
        "top_k": cell.top_k,
        "zoos": one.zoos,
        "fits": one.fits,
        **{f"{part}_std": math.sqrt(getattr(one, part)) for part in ("zoo", "fit", "split", "member")},
    }


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
                one.cell.dataset, one.cell.target, one.cell.classifier, one.label,
                f"without best {one.cell.top_k}" if one.cell.top_k else "all", str(one.zoos), str(one.fits),
                *(percent(math.sqrt(part)) for part in (one.zoo, one.fit, one.split, one.member)),
            )
            for one in found
        ],
        caption=[
            "standard deviations in %, by the method of moments: 0.0 where the parts within account for all of it",
            "fit: the representation's seed, on one split; member: of one split; –: not told from the others",
        ],
        text=("data", "target", "classifier", "representation", "layers"),
    )  # fmt: skip
