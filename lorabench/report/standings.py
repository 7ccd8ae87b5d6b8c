"""Which representation of a column is ahead, and what is shown of the others beside it."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lorabench.ablation.inference import CorrectedT, holm
from lorabench.findings import LEVEL
from lorabench.report.comparison import Cell, cells_together, differing, p_of_claim
from lorabench.results import Result

__all__ = ["Standing", "compare", "told_apart"]


@dataclass(frozen=True)
class Standing:
    """How a cell stands beside the best of its column: the same zoo, split, target, classifier and `top_k`.

    Two cells say something of each other on the splits and members alone that both have: where one has easier splits,
    its mean is higher for that. So the best is ahead of every other on what both have, or by the least behind it.

    Attributes:
        cell: it.
        label: the representation, and the settings in which it is not like others of its table.
        best: whether it is that of its column: where all have the same splits and members, the highest mean.
        difference: to the best, paired; None for the best itself, or where nothing pairs them.
        p: of that difference; NaN under three splits, and where it is the same on all of them: accuracies are counts
            of few adapters, and equal counts are no small error.
        holm: corrected for all others of the column.
        alone: of the best: whether every other is shown to be worse (Holm's p below 0.05). Never of one that lacks a
            split that another has: nobody knows how it does there.
    """

    cell: Cell
    label: str
    best: bool = False
    difference: CorrectedT | None = None
    p: float = math.nan
    holm: float = math.nan
    alone: bool = False

    @property
    def shown_below(self) -> bool:
        """Whether it is shown to be worse than the best."""
        return self.difference is not None and self.difference.mean < 0 and self.holm < LEVEL

    @property
    def shown_above(self) -> bool:
        """Whether it is shown to be better than what is ahead of most others."""
        return self.difference is not None and self.difference.mean > 0 and self.holm < LEVEL


def compare(results: Iterable[Result]) -> list[Standing]:
    """How the cells of runs stand beside one another."""
    cells = cells_together(results)
    columns: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        columns.setdefault(cell.column, []).append(cell)
    labels = _labels(cells)
    standing = {id(row.cell): row for column in columns.values() for row in _stand(column, labels)}
    return [standing[id(cell)] for cell in cells]


def told_apart(cells: Sequence[Cell]) -> dict[tuple[int, int], float]:
    """P of no difference of every two cells of a column, corrected for all pairs (Holm); by their places, the lower
    first. NaN where a pair has under three splits in common, or differs alike on all of them.
    """
    pairs = list(itertools.combinations(range(len(cells)), 2))
    adjusted = holm([p_of_claim(cells[a].difference(cells[b])) for a, b in pairs])
    return dict(zip(pairs, adjusted, strict=True))


def _labels(cells: Sequence[Cell]) -> dict[int, str]:
    """What every cell is called: the representation, and what sets it apart from its namesakes in the table.

    Over all layers nothing was ranked, so those have no namesakes among the others.
    """
    namesakes: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        namesakes.setdefault((cell.table, cell.representation, cell.top_k > 0), []).append(cell)
    found = {}
    for alike in namesakes.values():
        apart = differing([cell.settings for cell in alike])
        for cell in alike:
            own = [f"{name}={cell.settings[name]}" for name in apart if name in cell.settings]
            found[id(cell)] = " ".join([cell.representation, *own])
    return found


def _stand(column: Sequence[Cell], labels: Mapping[int, str]) -> list[Standing]:
    known = [cell for cell in column if cell.accuracy]
    if not known:
        return [Standing(cell, labels[id(cell)]) for cell in column]
    best = _best(known)
    differences = [None if cell is best else cell.difference(best) for cell in column]
    ps = [p_of_claim(one) for one in differences]
    rows = [
        Standing(cell, labels[id(cell)], cell is best, difference, p, corrected)
        for cell, difference, p, corrected in zip(column, differences, ps, holm(ps), strict=True)
    ]
    others = [row for row in rows if not row.best]
    whole = all(best.split_means.keys() >= cell.split_means.keys() for cell in known)
    alone = whole and bool(others) and all(row.shown_below for row in others)
    return [replace(row, alone=row.best and alone) for row in rows]


def _best(known: Sequence[Cell]) -> Cell:
    """The one whose lowest difference to another is the highest; one that nothing can be paired with comes last."""

    def standing(cell: Cell) -> tuple[bool, float, float]:
        found = [cell.difference(other) for other in known if other is not cell]
        leads = [one.mean for one in found if one is not None]
        return bool(leads), round(min(leads, default=0.0), 12), cell.mean

    return max(known, key=standing)
