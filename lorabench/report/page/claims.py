"""Each claim that a comparison may make, beside the control that guards it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorabench.ablation.compare import CompareFinding
from lorabench.ablation.controls import ControlRow
from lorabench.ablation.inference import CorrectedT, corrected_t, holm
from lorabench.ablation.none import NoneFinding
from lorabench.findings import LEVEL
from lorabench.report.comparison import interval_of_claim, p_of_claim, split_number, test_to_train
from lorabench.report.numbers import difference, interval, number, p_value, percent
from lorabench.report.page.rankings import ranked_together
from lorabench.report.ranked import how_ranked
from lorabench.report.standings import Standing
from lorabench.report.sweeps import column_title
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["claims"]

Sources = Callable[[Standing], Sequence[Result]]
_BySplit = dict[int, float]
"""Number of a split (`split_number`) -> a mean accuracy on it."""


def claims(results: Sequence[Result], rows: Sequence[Standing], sources: Sources) -> list[Sheet]:
    """Three tables: is it above the controls, are the best layers missed more than others, is the ranking stable.

    A row is guarded by what its own runs have trained. What a run over several splits says of its controls, it says
    itself.

    Args:
        results: of one table.
        rows: their cells with a member that ended well.
        sources: the results behind a row.
    """
    ratio = test_to_train(results[0])

    def single(row: Standing) -> list[Result]:
        return [one for one in sources(row) if one.split.get("splits", 1) == 1]

    return [_above(rows, single, ratio), *_missed(rows, single, ratio), *_stable(results)]


@dataclass(frozen=True)
class _Gap:
    """A difference, and its p corrected for all of its table; None where nothing pairs it."""

    found: CorrectedT | None
    holm: float

    @property
    def low(self) -> float:
        """Of its interval."""
        return interval_of_claim(self.found)[0]

    @property
    def high(self) -> float:
        """Likewise."""
        return interval_of_claim(self.found)[1]

    @property
    def cells(self) -> tuple[str, str]:
        """The difference with its interval, and p."""
        return difference(math.nan if self.found is None else self.found.mean, self), p_value(self.holm)

    def shown(self, sign: int) -> bool:
        """Whether it is shown to be on this side of nothing."""
        return self.found is not None and sign * self.found.mean > 0 and self.holm < LEVEL


def _gaps(found: Iterable[CorrectedT | None]) -> list[_Gap]:
    known = list(found)
    return [_Gap(one, p) for one, p in zip(known, holm([p_of_claim(one) for one in known]), strict=True)]


def _above(rows: Sequence[Standing], sources: Sources, ratio: float) -> Sheet:
    """Every representation over all layers beside the best of its controls."""
    whole = [row for row in rows if row.cell.top_k == 0]
    controls = [_controls(sources(row)) for row in whole]
    best = [max(known, key=lambda name: _mean(known[name]), default=None) for known in controls]
    guards = [known[name] if name else {} for known, name in zip(controls, best, strict=True)]
    gaps = _gaps(_paired(row.cell.split_means, guard, ratio) for row, guard in zip(whole, guards, strict=True))
    columns = (
        "representation", "test acc", "chance", "best control", "control acc", "difference [95 %]", "p, Holm", "said"
    )  # fmt: skip
    texts: dict[str, set[str]] = {}
    for control in (one for row in whole for result in sources(row) for one in _control_rows(result)):
        texts.setdefault(control.name, set()).add(control.text)
    names = [
        f"{name}: {' '.join(known) if len(known) == 1 else 'of each row its own'}" for name, known in texts.items()
    ]
    return Sheet(
        title=f"Claim: it reads the {rows[0].cell.target} from the weights. Guard: what knows less than the weights",
        columns=columns,
        rows=[
            (
                row.label,
                percent(row.cell.mean),
                percent(row.cell.chance),
                name or "none was run",
                percent(_mean(guard)) if guard else "–",
                *gap.cells,
                "above" if gap.shown(1) else "not shown" if name else "unguarded",
            )
            for row, name, guard, gap in zip(whole, best, guards, gaps, strict=True)
        ],
        caption=[
            *(names or ["ablation.controls=true trains them: the recipe, norms, permuted labels; and the ceiling"]),
            "differences in points, paired by split; corrected resampled t over splits; Holm over the rows",
        ],
        text=("representation", "best control", "said"),
    )


def _control_rows(result: Result) -> list[ControlRow]:
    """The controls of a run that ended well; the ceiling is none."""
    known = result.ablation.controls if isinstance(result.ablation, NoneFinding | CompareFinding) else None
    return [row for row in (known.rows if known else []) if row.accuracy is not None and row.kind == "control"]


def _controls(results: Sequence[Result]) -> dict[str, _BySplit]:
    found: dict[str, _BySplit] = {}
    for result in results:
        for row in _control_rows(result):
            if row.accuracy is not None:
                found.setdefault(row.name, {})[split_number(result)] = row.accuracy.mean
    return found


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean(list(values.values())))


def _paired(first: _BySplit, second: _BySplit, ratio: float) -> CorrectedT | None:
    shared = [first[split] - second[split] for split in first if split in second]
    return corrected_t(np.array(shared)[:, None], ratio) if shared else None


def _missed(rows: Sequence[Standing], sources: Sources, ratio: float) -> list[Sheet]:
    """Every representation without its best layers, beside all layers and beside as many at random."""
    whole = {row.cell.whole: row.cell for row in rows if row.cell.top_k == 0}
    taken = [row for row in rows if row.cell.top_k and row.cell.whole in whole]
    if not taken:
        return []
    random = [_random(sources(row), row) for row in taken]
    falls = _gaps(row.cell.difference(whole[row.cell.whole]) for row in taken)
    beside = _gaps(_paired(row.cell.split_means, own, ratio) for row, own in zip(taken, random, strict=True))
    columns = (
        "representation", "taken away", "test acc", "fall [95 %]", "p of the fall",
        "random ones away", "to random [95 %]", "p to random", "said",
    )  # fmt: skip
    cells = [
        (
            row.label,
            column_title(row.cell.top_k),
            percent(row.cell.mean),
            *fall.cells,
            percent(_mean(own)) if own else "none was run",
            *gap.cells,
            ("falls" if fall.shown(-1) else "no fall shown")
            + (", more than without random ones" if gap.shown(-1) else ""),
        )
        for row, own, fall, gap in zip(taken, random, falls, beside, strict=True)
    ]
    return [
        Sheet(
            title="Claim: the best layers carry it. Guard: as many layers at random",
            columns=columns,
            rows=cells,
            caption=[
                "in points, paired by split; corrected resampled t over splits; p by Holm over the rows",
                *([] if any(random) else ["ablation.random_draws=20 takes as many away at random"]),
            ],
            text=("representation", "taken away", "said"),
        )
    ]


def _random(results: Sequence[Result], row: Standing) -> _BySplit:
    """Mean accuracy without k random layers by split, of the runs that took a row's best k away."""
    found: _BySplit = {}
    for result in results:
        arms = result.ablation.arms if isinstance(result.ablation, CompareFinding) else []
        names = {arm.name for arm in arms if arm.kind == "random"}
        for one in result.summary:
            if one.ablation in names and one.representation == row.cell.representation and one.test_accuracy.n:
                found[split_number(result)] = one.test_accuracy.mean
    return found


def _stable(results: Sequence[Result]) -> list[Sheet]:
    """How far the rows of each ranking agree."""
    ranked = [(result, found) for result, found in ranked_together(results) if found.ranking]
    rows = []
    for result, found in ranked:
        best, stable = found.ranking[0], found.stability
        reach = percent(best.accuracy) + interval(best)
        taus = (_tau(stable.kendall_tau), _tau(stable.lowest), f"{stable.seeds} {stable.of}")
        rows.append((found.baseline, how_ranked(result), best.layer, reach, *taus))
    sheet = Sheet(
        title="Claim: these are the best layers. Guard: another split, or seed, ranks them alike",
        columns=("ranked by", "on", "best layer", "accuracy [95 %]", "mean τ", "lowest τ", "of"),
        rows=rows,
        caption=["Kendall's τ-b of the layers' accuracies between every two: 1 is the same order, 0 none"],
        text=("ranked by", "on", "best layer", "of"),
    )
    return [sheet] if rows else []


def _tau(value: float | None) -> str:
    return "–" if math.isnan(number(value)) else f"{number(value):.2f}"
