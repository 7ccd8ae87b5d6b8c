"""What a comparison says about the layers, in words that follow from its numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lorabench.ablation.inference import CorrectedT, permutation_p
from lorabench.results import LEVEL

__all__ = ["as_t", "verdict"]


def as_t(row: Mapping[str, Any] | None) -> CorrectedT:
    """The corrected t of a difference (`Study.difference`); on one split, or without a row, it knows no error."""
    if row is None:
        return CorrectedT(math.nan, math.nan, 0)
    corrected = row["corrected"]
    if corrected is None:
        return CorrectedT(row["difference"], math.nan, 0)
    return CorrectedT(row["difference"], corrected["error"], corrected["splits"] - 1)


def verdict(
    fall: CorrectedT, fall_p: float, beside: CorrectedT, drawn: Sequence[float], margin: float
) -> dict[str, Any]:
    """What becomes of a representation without its best layers.

    - *redundant*: what it loses is shown to be less than the margin, so the other layers say it too;
    - *localised*: it loses something, and more than without as many random layers;
    - *distributed*: it loses something, and what random layers take away is shown to be the same but for the margin;
    - *undecided* otherwise: a test that fails to tell apart says nothing.

    >>> sure, none = CorrectedT(-0.2, 0.01, 4), CorrectedT(0.0, 0.005, 4)
    >>> verdict(sure, 0.001, sure, [-0.01] * 20, 0.03)["verdict"]
    'localised'
    >>> verdict(none, 0.9, none, [], 0.03)["verdict"]
    'redundant'

    Args:
        fall: test accuracy without the best layers minus that with all.
        fall_p: its p, corrected for all representations of the table.
        beside: test accuracy without the best layers minus that without random ones; of no known error without draws.
        drawn: test accuracy without each set of random layers minus that with all.
        margin: what is no difference, as a share.

    Returns:
        `verdict`; the p of each of its tests: `fall_p`, `equivalence_p` (no fall as large as the margin), `random_p`
        (a fall as large by random layers, a permutation p), `random_equivalence_p` (no difference to those as large as
        the margin); and, where nothing is decided, `more`: about how many times as many test adapters would show a
        fall of nothing to be below the margin, since 90 % intervals shrink with their root; NaN for one split, which
        can decide nothing.
    """
    random_p = permutation_p(-fall.mean, [-one for one in drawn])
    found = {
        "fall_p": fall_p,
        "equivalence_p": fall.equivalence(margin),
        "random_p": random_p,
        "random_equivalence_p": beside.equivalence(margin),
    }
    falls = fall.mean < 0 and fall_p < LEVEL
    if found["equivalence_p"] < LEVEL:
        word = "redundant"
    elif falls and random_p < LEVEL and beside.mean < 0:
        word = "localised"
    elif falls and found["random_equivalence_p"] < LEVEL:
        word = "distributed"
    else:
        low, high = fall.interval(1 - 2 * LEVEL)
        return {"verdict": "undecided", **found, "more": ((high - low) / 2 / margin) ** 2}
    return {"verdict": word, **found, "more": None}
