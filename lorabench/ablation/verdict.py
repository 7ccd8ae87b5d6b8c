"""What a comparison says about the layers, in words that follow from its numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorabench.ablation.inference import CorrectedT, permutation_p
from lorabench.findings import LEVEL, Difference, Number

__all__ = ["Verdict", "as_t", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """What becomes of a representation without its best layers, and the p of each test.

    Attributes:
        representation: its name.
        verdict: "localised", "redundant", "distributed" or "undecided".
        fall_p: of no fall.
        equivalence_p: of a fall as large as the margin.
        random_p: of a fall as large by random layers, a permutation p.
        random_equivalence_p: of a difference to random layers as large as the margin.
        more: None where something is decided (as NaN, null in a file); else about how many times as many test
            adapters would show a fall of nothing to be below the margin, since 90 % intervals shrink with their root;
            NaN for one split, which can decide nothing.
        draws: sets of random layers.
    """

    representation: str
    verdict: str
    fall_p: Number
    equivalence_p: Number
    random_p: Number
    random_equivalence_p: Number
    more: float | None
    draws: int


def as_t(row: Difference | None) -> CorrectedT:
    """The corrected t of a difference (`Study.difference`); on one split, or without a row, it knows no error."""
    if row is None:
        return CorrectedT(math.nan, math.nan, 0)
    if row.corrected is None:
        return CorrectedT(row.difference, math.nan, 0)
    return CorrectedT(row.difference, row.corrected.error, row.corrected.splits - 1)


def verdict(
    name: str, fall: CorrectedT, fall_p: float, beside: CorrectedT, drawn: Sequence[float], margin: float
) -> Verdict:
    """What becomes of a representation without its best layers.

    - *redundant*: what it loses is shown to be less than the margin, so the other layers say it too;
    - *localised*: it loses something, and more than without as many random layers;
    - *distributed*: it loses something, and what random layers take away is shown to be the same but for the margin;
    - *undecided* otherwise: a test that fails to tell apart says nothing.

    >>> sure, none = CorrectedT(-0.2, 0.01, 4), CorrectedT(0.0, 0.005, 4)
    >>> verdict("stats", sure, 0.001, sure, [-0.01] * 20, 0.03).verdict
    'localised'
    >>> verdict("stats", none, 0.9, none, [], 0.03).verdict
    'redundant'

    Args:
        name: of the representation.
        fall: test accuracy without the best layers minus that with all.
        fall_p: its p, corrected for all representations of the table.
        beside: test accuracy without the best layers minus that without random ones; of no known error without draws.
        drawn: test accuracy without each set of random layers minus that with all.
        margin: what is no difference, as a share.
    """
    random_p = permutation_p(-fall.mean, [-one for one in drawn])
    equivalence_p, random_equivalence_p = fall.equivalence(margin), beside.equivalence(margin)
    falls, more = fall.mean < 0 and fall_p < LEVEL, None
    if equivalence_p < LEVEL:
        word = "redundant"
    elif falls and random_p < LEVEL and beside.mean < 0:
        word = "localised"
    elif falls and random_equivalence_p < LEVEL:
        word = "distributed"
    else:
        word = "undecided"
        low, high = fall.interval(1 - 2 * LEVEL)
        more = ((high - low) / 2 / margin) ** 2
    return Verdict(name, word, fall_p, equivalence_p, random_p, random_equivalence_p, more, len(drawn))
