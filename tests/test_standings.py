"""What is said to be ahead, where representations have not all the same splits."""

import numpy as np
import pytest

from lorabench.report.standings import compare
from lorabench.report.sweeps import tables_of
from lorabench.sheet import sheets_text
from tests.made_results import a_result


def of(name, accuracies, first=0):
    """A run of one split each."""
    return [a_result({name: [value]}, seed=first + seed) for seed, value in enumerate(accuracies)]


def said(results):
    return " ".join(sheets_text(tables_of(compare(results), [])).split())


def test_easier_splits_make_no_representation_the_best():
    """B has the higher mean by three splits that A has not, and is worse on every split that both have."""
    found = [*of("A", [0.60, 0.61, 0.625]), *of("B", [0.50, 0.51, 0.52, 0.9, 0.9, 0.9])]
    rows = {row.label: row for row in compare(found)}
    assert rows["B"].cell.mean > rows["A"].cell.mean
    assert (rows["A"].best, rows["B"].best) == (True, False)
    assert rows["B"].shown_below
    assert not any(row.alone for row in rows.values()), "A lacks the other splits"
    text = said(found)
    assert "*" not in text
    assert "A is ahead on the splits that it and others have; it lacks splits of B, and is not called better" in text


def test_one_that_has_every_split_is_better_than_one_that_lacks_some():
    found = [*of("A", [0.60, 0.61, 0.625, 0.6]), *of("B", [0.50, 0.51, 0.52])]
    rows = {row.label: row for row in compare(found)}
    assert rows["A"].best
    assert rows["A"].alone
    assert "* A is better than every other" in said(found)


@pytest.mark.parametrize("order", [1, -1])
def test_where_each_is_ahead_of_another_none_is_better_than_all(order):
    """A before B on their splits, B before C on theirs, C before A on theirs: no star, in whatever order."""
    steps = np.array([0.0, 0.01, 0.025])
    found = [
        *of("A", 0.70 + steps), *of("B", 0.60 + steps),
        *of("B", 0.70 + steps, 10), *of("C", 0.61 + 2 * steps, 10),
        *of("C", 0.70 + steps, 20), *of("A", 0.62 + 2 * steps, 20),
    ][::order]  # fmt: skip
    rows = compare(found)
    assert sum(row.best for row in rows) == 1
    assert not any(row.alone for row in rows)
    assert "is better than every other" not in said(found)


def test_one_that_is_shown_to_be_better_than_the_best_is_named():
    steps = np.array([0.0, 0.01, 0.025])
    found = [
        *of("A", 0.70 + steps), *of("B", 0.50 + 2 * steps),
        *of("B", 0.70 + steps, 10), *of("C", 0.50 + 2 * steps, 10),
        *of("C", 0.70 + steps, 20), *of("A", 0.60 + 2 * steps, 20),
    ]  # fmt: skip
    (best,) = [row.label for row in compare(found) if row.best]
    (above,) = [row.label for row in compare(found) if row.shown_above]
    assert (best, above) == ("A", "C")
    assert "C is shown to be better where both were tested" in said(found)


def test_a_representation_that_nothing_is_paired_with_is_not_the_best():
    found = [*of("A", [0.6, 0.61, 0.62]), *of("B", [0.5, 0.51, 0.53]), *of("C", [0.99], 7)]
    (best,) = [row for row in compare(found) if row.best]
    assert (best.label, best.alone) == ("A", False)
    assert "it has no split and member in common with C" in said(found)
