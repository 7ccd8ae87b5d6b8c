"""Tables of every metric: over all layers, and of every arm."""

from lorabench.report.arms import with_arm
from lorabench.report.numbers import CONSTANT, counted, error_words, mean_std, of_constant, over, plain
from lorabench.results import METRICS, NUMBER_METRICS, Numbers, Result, Summary
from lorabench.sheet import Sheet

__all__ = ["every_arm", "scores"]

_TITLES = {
    "train_accuracy": "train acc",
    "val_accuracy": "val acc",
    "test_accuracy": "test acc",
    "test_macro_f1": "macro-F1",
    "test_auroc": "AUROC",
}

_SPENT = ("classifier", "tries", "seconds", "parameters")
"""Shown where rows differ in them: configurations tried, and what all members took."""


def scores(result: Result) -> Sheet:
    """Every representation over all layers."""
    rows = with_arm(result, "none")
    several = len({(row.classifier, row.tries) for row in rows}) > 1 or any(row.tries > 1 for row in rows)
    return Sheet(
        title=f"What the weights of {result.dataset['name']} say about the {result.target}",
        columns=(
            "representation",
            "features",
            *_TITLES.values(),
            *_number_titles(result.numbers),
            *(_SPENT if several else ()),
        ),
        rows=[
            *((row.representation, *_cells(row), *_numbers(row), *(_spent(row) if several else ())) for row in rows),
            *_constant(result.numbers, len(_SPENT) if several else 0),
        ],
        caption=[
            counted(result),
            f"mean ± std over {_over(result)}, in % · chance {100 * result.chance:.1f}",
            *_number_words(result.numbers),
            *(f"{row.representation} failed: {error}" for row in rows for error in row.failed),
        ],
        text=("representation", "classifier"),
        spare=("train acc", "features", "val acc", "macro-F1", "AUROC", *_SPENT[1:]),
    )


def every_arm(result: Result) -> Sheet:
    """Every metric of every representation and kind of arm: beyond a terminal's patience."""
    return Sheet(
        title="Every arm",
        columns=("representation", "ablation", "features", *_TITLES.values(), *_number_titles(result.numbers)),
        rows=[(row.representation, row.ablation, *_cells(row), *_numbers(row)) for row in result.summary],
        caption=[f"mean ± std over {_over(result)}, in %"],
        text=("representation", "ablation"),
        long=True,
    )


def _cells(row: Summary) -> tuple[str, ...]:
    return (str(row.features or "–"), *(mean_std(getattr(row, name), row) for name in METRICS))


def _spent(row: Summary) -> tuple[str, ...]:
    """What a row's members are, and what their training took: seconds of all, numbers of one."""
    return row.classifier, str(row.tries), f"{row.seconds:.0f}", f"{row.parameters:.0f}"


def _number_titles(numbers: Numbers | None) -> tuple[str, ...]:
    return () if numbers is None else ("MAE", "R²")


def _numbers(row: Summary) -> tuple[str, ...]:
    """Mean absolute error and R² of a number, as they are."""
    found = [getattr(row, name) for name in NUMBER_METRICS]
    return () if None in found else tuple(map(plain, found))


def _constant(numbers: Numbers | None, more: int) -> list[tuple[str, ...]]:
    """The row of the best constant, with so many columns more."""
    if numbers is None:
        return []
    return [
        (CONSTANT, *["–"] * (1 + len(_TITLES)), *of_constant(numbers.constant_mae, numbers.constant_r2), *["–"] * more)
    ]


def _number_words(numbers: Numbers | None) -> list[str]:
    if numbers is None:
        return []
    return [error_words(numbers.unit)]


def _over(result: Result) -> str:
    count = max((row.test_accuracy.n for row in with_arm(result, "none")), default=0)
    return "seeds" if result.split.get("splits", 1) == 1 else over(result, count)
