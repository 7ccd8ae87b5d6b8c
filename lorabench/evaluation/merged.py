"""One evaluation from those of an arm on several splits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from lorabench.evaluation.arm import Evaluation
from lorabench.zoo.splits import Split

__all__ = ["held_out", "held_out_rows", "merged"]

Part = Literal["val", "test"]


def held_out_rows(splits: Sequence[Split], part: Part) -> Int64[np.ndarray, " n"]:
    """The adapters that are in this part of any split, ascending."""
    return np.unique(np.concatenate([getattr(split, part) for split in splits]))


def held_out(splits: Sequence[Split], part: Part) -> Bool[np.ndarray, "splits n"]:
    """Which of `held_out_rows` are in this part of each split."""
    rows = held_out_rows(splits, part)
    return np.stack([np.isin(rows, getattr(split, part)) for split in splits])


def merged(found: Sequence[Evaluation], splits: Sequence[Split]) -> Evaluation:
    """The members of all splits, one split after another, over the adapters that any of them holds out.

    The columns of tables are `held_out_rows`. Where a member's split does not hold an adapter out, its prediction and
    label are -1 and it is not right. The arm, the units and the features are those of the first split, whose
    evaluation alone is returned as it is.

    Args:
        found: one a split; those of one arm, whose layers may differ.
        splits: theirs.
    """
    failed = [one for one in found if not one.runs]
    if len(found) == 1 or failed:
        return (failed or list(found))[0]

    def joined(name: str, part: Part, fill: int | bool) -> Shaped[np.ndarray, "members n"]:
        rows, tables = held_out_rows(splits, part), []
        for one, split in zip(found, splits, strict=True):
            values = getattr(one, name)
            table = np.full((len(values), len(rows)), fill, values.dtype)
            table[:, np.searchsorted(rows, getattr(split, part))] = values
            tables.append(table)
        return np.concatenate(tables)

    return replace(
        found[0],
        runs=tuple(replace(run, split=number) for number, one in enumerate(found) for run in one.runs),
        val=joined("val", "val", -1),
        test=joined("test", "test", -1),
        test_labels=joined("test_labels", "test", -1),
        val_correct=joined("val_correct", "val", fill=False),
        test_correct=joined("test_correct", "test", fill=False),
        probes=tuple(probe for one in found for probe in one.probes),
    )
