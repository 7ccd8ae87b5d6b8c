"""Each claim that a comparison may make, beside the control that guards it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorabench.ablation.compare import CompareFinding
from lorabench.ablation.inference import CorrectedT, corrected_t, holm
from lorabench.ablation.none import NoneFinding
from lorabench.report.comparison import LEVEL, Standing, p_of_claim
from lorabench.report.numbers import number, p_value, percent
from lorabench.report.page.rankings import ranked_together
from lorabench.report.ranked import how_ranked
from lorabench.report.sheet import Sheet
from lorabench.report.sweeps import what
from lorabench.results import Result
from lorabench.text import counted

__all__ = ["claims"]

_BySeed = dict[int, float]
"""Seed of a run, which draws its split -> a mean accuracy in it."""


def claims(results: Sequence[Result], rows: Sequence[Standing]) -> list[Sheet]:
    """Three tables: is it above the controls, are the best layers missed more than others, is the ranking stable.

    Args:
        results: of one table. What a run over several splits says of its controls, it says itself.
        rows: their cells with a member that ended well.
    """
    single = [one for one in results if one.split.get("splits", 1) == 1]
    ratio = results[0].split["test"] / results[0].split["train"]
    return [_above(single, rows, ratio), *_missed(single, rows, ratio), *_stable(results)]


@dataclass(frozen=True)
class _Gap:
    """A difference, and its p corrected for all of its table; None where nothing pairs it."""

    found: CorrectedT | None
    holm: float

    @property
    def cells(self) -> tuple[str, str]:
        """The difference with its interval, and p."""
        if self.found is None:
            return "–", "–"
        low, high = self.found.interval()
        reach = "" if math.isnan(low) else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
        return f"{100 * self.found.mean:+.1f}{reach}", p_value(self.holm)

    def shown(self, sign: int) -> bool:
        """Whether it is shown to be on this side of nothing."""
        return self.found is not None and sign * self.found.mean > 0 and self.holm < LEVEL


def _gaps(found: Iterable[CorrectedT | None]) -> list[_Gap]:
    known = list(found)
    return [_Gap(one, p) for one, p in zip(known, holm([p_of_claim(one) for one in known]), strict=True)]


def _above(results: Sequence[Result], rows: Sequence[Standing], ratio: float) -> Sheet:
    """Every representation over all layers beside the best control."""
    controls, texts = _controls(results)
    best = max(controls, key=lambda name: _mean(controls[name]), default=None)
    whole = [row for row in rows if row.cell.top_k == 0]
    gaps = _gaps(_paired(_by_seed(row), controls[best], ratio) if best else None for row in whole)
    lines = [
        f"{name}: {percent(_mean(values))} % in {counted(len(values), 'run')} ({texts[name]})"
        for name, values in controls.items()
    ]
    return Sheet(
        title=f"Claim: it reads the {rows[0].cell.target} from the weights. Guard: what knows less than the weights",
        columns=("representation", "test acc", "chance", "best control", "difference [95 %]", "p, Holm", "said"),
        rows=[
            (
                row.label,
                percent(row.cell.mean),
                percent(row.cell.chance),
                best or "none was run",
                *gap.cells,
                "above" if gap.shown(1) else "not shown" if best else "unguarded",
            )
            for row, gap in zip(whole, gaps, strict=True)
        ],
        caption=[
            *(lines or ["ablation.controls=true trains them: the recipe, norms, permuted labels; and the ceiling"]),
            "differences in points, paired by run; corrected resampled t over splits; Holm over the rows",
        ],
        text=("representation", "best control", "said"),
    )


def _controls(results: Sequence[Result]) -> tuple[dict[str, _BySeed], dict[str, str]]:
    """Accuracy of every control by seed, and what it reads; the ceiling is none."""
    found: dict[str, _BySeed] = {}
    texts: dict[str, str] = {}
    for result in results:
        known = result.ablation.controls if isinstance(result.ablation, NoneFinding | CompareFinding) else None
        for row in known.rows if known else []:
            if row.accuracy is not None and row.kind == "control":
                found.setdefault(row.name, {})[int(result.config["seed"])] = row.accuracy.mean
                texts.setdefault(row.name, row.text)
    return found, texts


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean(list(values.values())))


def _by_seed(row: Standing) -> _BySeed:
    """Mean over the members of every split."""
    found: dict[int, list[float]] = {}
    for (split, _), value in row.cell.accuracy.items():
        found.setdefault(split, []).append(value)
    return {split: float(np.mean(values)) for split, values in found.items()}


def _paired(first: _BySeed, second: _BySeed, ratio: float) -> CorrectedT | None:
    shared = [first[seed] - second[seed] for seed in first if seed in second]
    return corrected_t(np.array(shared)[:, None], ratio) if shared else None


def _missed(results: Sequence[Result], rows: Sequence[Standing], ratio: float) -> list[Sheet]:
    """Every representation without its best layers, beside all layers and beside as many at random."""
    whole = {row.label: row.cell for row in rows if row.cell.top_k == 0}
    taken = [row for row in rows if row.cell.top_k and row.label in whole]
    if not taken:
        return []
    random = [_random(results, row) for row in taken]
    falls = _gaps(row.cell.difference(whole[row.label]) for row in taken)
    beside = _gaps(_paired(_by_seed(row), own, ratio) for row, own in zip(taken, random, strict=True))
    columns = (
        "representation", "taken away", "test acc", "fall [95 %]", "p of the fall",
        "random ones away", "to random [95 %]", "p to random", "said",
    )  # fmt: skip
    return [
        Sheet(
            title="Claim: the best layers carry it. Guard: as many layers at random",
            columns=columns,
            rows=[
                (
                    row.label,
                    what(row.cell.top_k),
                    percent(row.cell.mean),
                    *fall.cells,
                    percent(_mean(own)) if own else "none was run",
                    *gap.cells,
                    ("falls" if fall.shown(-1) else "no fall shown")
                    + (", more than without random ones" if gap.shown(-1) else ""),
                )
                for row, own, fall, gap in zip(taken, random, falls, beside, strict=True)
            ],
            caption=[
                "in points, paired by split; corrected resampled t over splits; p by Holm over the rows",
                *([] if any(random) else ["ablation.random_draws=20 takes as many away at random"]),
            ],
            text=("representation", "taken away", "said"),
        )
    ]


def _random(results: Sequence[Result], row: Standing) -> _BySeed:
    """Mean accuracy without k random layers by seed, of the runs that took a representation's best k away."""
    found: _BySeed = {}
    for result in results:
        if not isinstance(result.ablation, CompareFinding) or result.ablation.top_k != row.cell.top_k:
            continue
        names = {arm.name for arm in result.ablation.arms if arm.kind == "random"}
        for one in result.summary:
            if one.ablation in names and one.representation == row.cell.representation and one.test_accuracy.n:
                found[int(result.config["seed"])] = one.test_accuracy.mean
    return found


def _stable(results: Sequence[Result]) -> list[Sheet]:
    """How far the rows of each ranking agree."""
    ranked = [(result, found) for result, found in ranked_together(results) if found.ranking]
    rows = []
    for result, found in ranked:
        best, stable = found.ranking[0], found.stability
        reach = f"{percent(best.accuracy)} [{percent(best.low)}, {percent(best.high)}]"
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
