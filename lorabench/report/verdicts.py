"""The verdict of a comparison with and without layers, a sentence a word."""

import math
from typing import Any

from lorabench.report.numbers import number, p_value
from lorabench.results import Result

__all__ = ["verdict_lines"]


def verdict_lines(result: Result) -> list[str]:
    """What every representation's tests decide, those of one word together."""
    found = result.ablation.get("verdicts") or []
    k, points = result.ablation.get("top_k"), f"{100 * number(result.ablation.get('margin')):.3g} points"
    said = {
        "localised": f"localised in the best {k} (they are missed, and more than any {k} at random): ",
        "distributed": f"distributed (the best {k} are missed, and as much as {k} at random, within {points}): ",
        "redundant": f"redundant (without the best {k} less than {points} are lost, shown by equivalence): ",
        "undecided": "undecided with this much data: ",
    }
    lines = []
    for word, text in said.items():
        rows = [row for row in found if row["verdict"] == word]
        if rows:
            lines.append(text + ", ".join(f"{row['representation']} ({_why(row)})" for row in rows))
    return [f"verdict: {line}" for line in lines]


def _why(row: dict[str, Any]) -> str:
    """The test that decides, or about how much data would."""
    if row["verdict"] == "undecided":
        more = number(row["more"])
        if math.isnan(more):
            return "one split decides nothing: splits=5"
        return f"about {more:.1f} times the test adapters would" if more > 1 else "it falls by about the margin"
    by = {"localised": "random_p", "distributed": "random_equivalence_p", "redundant": "equivalence_p"}
    return f"p {p_value(row[by[row['verdict']]])}"
