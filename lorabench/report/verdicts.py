"""The verdict of a comparison with and without layers, a sentence a word."""

import math

from lorabench.ablation.compare import CompareFinding
from lorabench.ablation.verdict import Verdict
from lorabench.report.numbers import number, p_value

__all__ = ["verdict_lines"]


def verdict_lines(found: CompareFinding) -> list[str]:
    """What every representation's tests decide, those of one word together."""
    k, points = found.top_k, f"{100 * found.margin:.3g} points"
    said = {
        "localised": f"localised in the best {k} (they are missed, and more than any {k} at random): ",
        "distributed": f"distributed (the best {k} are missed, and as much as {k} at random, within {points}): ",
        "redundant": f"redundant (without the best {k} less than {points} are lost, shown by equivalence): ",
        "undecided": "undecided with this much data: ",
    }
    lines = []
    for word, text in said.items():
        rows = [row for row in found.verdicts if row.verdict == word]
        if rows:
            lines.append(text + ", ".join(f"{row.representation} ({_why(row)})" for row in rows))
    return [f"verdict: {line}" for line in lines]


def _why(row: Verdict) -> str:
    """The test that decides, or about how much data would."""
    if row.verdict == "undecided":
        more = number(row.more)
        if math.isnan(more):
            return "one split decides nothing: splits=5"
        return f"about {more:.1f} times the test adapters would" if more > 1 else "it falls by about the margin"
    by = {
        "localised": row.random_p,
        "distributed": row.random_equivalence_p,
        "redundant": row.equivalence_p,
    }
    return f"p {p_value(by[row.verdict])}"
