"""How far representations are ahead of those that they are compared with: a table."""

from collections.abc import Sequence

from lorabench.ablation.none import Between
from lorabench.findings import Compared
from lorabench.report.numbers import difference, interval, method, p_value
from lorabench.sheet import Sheet

__all__ = ["between_sheet", "verdicts_above"]

_ONE_SPLIT = "one split is no ground to call one better than another: splits=5 draws more"


def between_sheet(rows: Sequence[Between], names: Sequence[str], what: str = "test accuracy") -> Sheet:
    """A row a representation, and a few columns for each that it is compared with.

    Args:
        rows: of the pairs.
        names: those that the others are compared with.
        what: whose differences they are.
    """
    against = [name for name in names if any(row.against == name for row in rows)]
    cells = {(row.representation, row.against): row for row in rows}
    several, first = rows[0].corrected is not None, rows[0]
    columns: list[str] = []
    for name in against:
        columns += [f"to {name}\n[95 %]", *([f"bootstrap\n({name})"] if several else [])]
        columns += [f"p\n({name})", f"p, Holm\n({name})"]
    body = [
        (name, *(text for other in against for text in _compared(cells.get((name, other)), several)))
        for name in dict.fromkeys(row.representation for row in rows)
    ]
    beside = f"; beside it a bootstrap over {first.seeds} members and {first.adapters} test adapters"
    return Sheet(
        title=f"Differences of {what}, in points, paired",
        columns=("representation", *columns),
        rows=body,
        caption=[
            f"intervals and p are {method(first)}{beside if several else ''}",
            f"Holm: corrected for {len(rows)} {'comparison' if len(rows) == 1 else 'comparisons'}",
            *(_told(rows, other) for other in against if several),
            *([] if several else [_ONE_SPLIT]),
        ],
        text=("representation",),
        spare=tuple(c for word in ("p\n", "bootstrap", "p, Holm") for c in columns if c.startswith(word)),
    )


def verdicts_above(rows: Sequence[tuple[Compared, str]]) -> list[str]:
    """Which are above what, a line each; of one split that it decides nothing.

    Args:
        rows: differences, and what each is a difference to.
    """
    if any(row.corrected is None for row, _ in rows):
        return [_ONE_SPLIT]
    return [
        f"verdict: {row.representation} is {'' if row.shown_above else 'not shown to be '}above {other}"
        for row, other in rows
    ]


def _compared(row: Between | None, several: bool) -> tuple[str, ...]:
    if row is None:
        return ("–",) * (4 if several else 3)
    beside = (interval(row, signed=True).strip() or "–",) if several else ()
    return (difference(row.difference, row.claimed), *beside, p_value(row.claimed.p), p_value(row.holm))


def _told(rows: Sequence[Between], other: str) -> str:
    """Which are better and worse than `other`: by the corrected interval, and Holm's p over the table below 0.05."""
    own = [row for row in rows if row.against == other]
    sides = {
        "better": [row.representation for row in own if row.shown_above],
        "worse": [row.representation for row in own if row.shown_below],
    }
    return f"{other}: " + "; ".join(f"{word} are {', '.join(names) or 'none'}" for word, names in sides.items())
