"""What is predicted of the adapters: their category, their leaf, or a number of their recipe in ordered classes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lorabench.errors import LorabenchError
from lorabench.zoo.labels import Labels

__all__ = ["MOST_VALUES", "Target", "find_target", "follows"]

MOST_VALUES = 50
"""Distinct values of a number that is predicted: each is a class."""

_DECADE = 10.0


@dataclass(frozen=True)
class Target:
    """One class for every adapter.

    Attributes:
        name: `category`, `leaf`, or a column of the recipe.
        codes: class of every adapter, into `names`, [N].
        names: names of the classes.
        values: the number that each class stands for, in `unit`, ascending, [classes]; None where classes have no
            order.
        unit: what errors of the number are measured in: the column's name, or "log2" of it.
    """

    name: str
    codes: Int64[np.ndarray, " n"]
    names: tuple[str, ...]
    values: Float64[np.ndarray, " classes"] | None = None
    unit: str = ""


def find_target(labels: Labels, name: str) -> Target:
    """The classes of `category`, `leaf`, or a column of `labels.recipe`, each distinct value of which is a class.

    Errors of numbers above 0 that span a decade or more, as learning rates do, are measured in their log2, so that
    twice and half are as far off; of others in the numbers themselves.

    >>> recipe = {"rate": np.array([4e-3, 1e-3, 16e-3]), "rank": np.arange(3.0)}
    >>> labels = Labels.of(["a", "b", "c"], ["x", "y", "z"], ["x", "y", "z"], recipe=recipe)
    >>> [(one.unit, one.names, one.codes.tolist()) for one in (find_target(labels, name) for name in ("rate", "rank"))]
    [('log2 rate', ('0.001', '0.004', '0.016'), [1, 0, 2]), ('rank', ('0', '1', '2'), [0, 1, 2])]

    Raises:
        LorabenchError: there is no such column, or its values are too many or no numbers.
    """
    if name == "category":
        return Target(name, labels.category, labels.category_names)
    if name == "leaf":
        return Target(name, labels.leaf, labels.leaf_names)
    if name not in labels.recipe:
        raise LorabenchError(f"target={name}: allowed are {', '.join(['category', 'leaf', *labels.recipe])}")
    column = labels.recipe[name]
    if not np.isfinite(column).all():
        raise LorabenchError(
            f"target={name}: {labels.adapters[int(np.argmin(np.isfinite(column)))]} has no finite number. Fill it in, "
            "remove the adapter, or predict another column"
        )
    values, codes = np.unique(column, return_inverse=True)
    if len(values) > MOST_VALUES:
        raise LorabenchError(
            f"target={name}: {len(values)} distinct values, and {MOST_VALUES} are the most that are predicted as "
            "ordered classes. Round the column, or predict another one"
        )
    short = tuple(f"{value:g}" for value in values)
    names = short if len(set(short)) == len(values) else tuple(repr(float(value)) for value in values)
    unit, measured = _on_scale(name, values)
    return Target(name, codes.astype(np.int64), names, measured, unit)


def _on_scale(name: str, values: Float64[np.ndarray, " classes"]) -> tuple[str, Float64[np.ndarray, " classes"]]:
    """What an error of a number is measured in, and the values in it."""
    if values.min() > 0 and values.max() >= _DECADE * values.min():
        return f"log2 {name}", np.log2(values)
    return name, values


def follows(column: Float64[np.ndarray, " n"], codes: Int64[np.ndarray, " n"]) -> bool:
    """Whether a column is a function of the classes, over all adapters or over those where it is not 0.

    Steps say what the number of samples is, and the rank says that of every module that is there. A column without
    two values says nothing and follows from nothing.

    Args:
        column: of the recipe.
        codes: class of every adapter.
    """
    rows: tuple[Bool[np.ndarray, " n"], ...] = (np.ones(len(column), bool), column != 0)
    return any(
        len(np.unique(column[own])) > 1
        and np.unique(np.stack([codes[own], column[own]]), axis=1).shape[1] == len(np.unique(codes[own]))
        for own in rows
    )
