"""How numbers are written: fractions as percent, what is not known as a dash or not at all."""

import math
from collections.abc import Sequence

from lorabench.findings import Difference, Interval, Measured
from lorabench.results import Result, Statistic, Summary

__all__ = [
    "CONSTANT",
    "counted",
    "counts",
    "difference",
    "error_words",
    "interval",
    "mean_std",
    "measured",
    "method",
    "number",
    "of_constant",
    "over",
    "p_value",
    "percent",
    "plain",
    "spread",
]

_NAMED = 5
CONSTANT = "the best constant"
"""The row of what a number's errors are without any adapter read."""


def number(value: float | int | None) -> float:
    """The value; NaN for the null of a JSON file."""
    return math.nan if value is None else float(value)


def percent(value: float | int | None) -> str:
    """A fraction in percent."""
    value = number(value)
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def spread(value: float | int | None) -> str:
    """The deviation, as in " ± 2.0", or nothing where it is not known."""
    value = number(value)
    return "" if math.isnan(value) else f" ±{100 * value:4.1f}"


def mean_std(statistic: Statistic, row: Summary) -> str:
    """Mean and standard deviation of a row's metric, or that the row failed."""
    if statistic.n == 0:
        return "failed" if row.failed else "–"
    return percent(statistic.mean) + spread(statistic.std)


def plain(statistic: Statistic) -> str:
    """Mean and standard deviation of what is no share."""
    if not statistic.n:
        return "–"
    return f"{statistic.mean:.2f}" + ("" if math.isnan(statistic.std) else f" ± {statistic.std:.2f}")


def of_constant(mae: float, r2: float) -> tuple[str, str]:
    """MAE of the training median and R² of the training mean."""
    return f"{mae:.2f}", f"{r2:.2f}".replace("nan", "–")


def error_words(unit: str) -> str:
    """What MAE and R² are of."""
    return f"MAE: mean absolute error of the expected number, in {unit}; R² likewise, not in %"


def interval(found: Interval, signed: bool = False) -> str:
    """The interval, as in " [33.0, 49.0]", or nothing where it is not known."""
    low, high = found.low, found.high
    sign = "+" if signed else ""
    return "" if math.isnan(low) or math.isnan(high) else f" [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def measured(found: Measured) -> str:
    """Mean, deviation and interval of an arm's accuracy, as in "41.0 ±  2.0 [33.0, 49.0]"."""
    return percent(found.mean) + spread(found.std) + interval(found)


def difference(value: float, found: Interval) -> str:
    """A difference in points of percent, with its sign and its interval."""
    return "–" if math.isnan(value) else f"{100 * value:+.1f}{interval(found, signed=True)}"


def over(result: Result, count: int) -> str:
    """How many members a mean runs over: "3 seeds", or "10 members on 5 splits"."""
    splits = result.split.get("splits", 1)
    return f"{count} seeds" if splits == 1 else f"{count} members on {splits} splits"


def method(found: Difference) -> str:
    """Where the interval and the p of its claim come from."""
    if found.corrected:
        return f"the corrected resampled t over {found.corrected.splits} splits"
    return f"a bootstrap over {found.seeds} seeds and {found.adapters} test adapters"


def p_value(value: float | int | None) -> str:
    """A probability to three digits."""
    value = number(value)
    if math.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def counts(numbers: Sequence[int]) -> str:
    """A number a split, as in "174" or "170 to 174"."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def counted(result: Result) -> str:
    """How many adapters, layers and classes there are, how they are split, and the classes that nothing tests."""
    data, split = result.dataset, result.split
    used = split["train"] + split["val"] + split["test"]
    said = f"{used}" if used == data["adapters"] else f"{used} of {data['adapters']}"
    parts = f"{split['train']} train / {split['val']} val / {split['test']} test"
    untested = split.get("untested") or []
    names = ", ".join(untested[:_NAMED]) + (f" and {len(untested) - _NAMED} more" if len(untested) > _NAMED else "")
    missing = f" · no test adapter of {names}" if untested else ""
    return f"{said} adapters, {data['layers']} layers, {len(result.classes)} classes · {parts}{missing}"
