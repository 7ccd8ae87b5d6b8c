"""Tables of every metric: over all layers, and of every arm."""

from lorabench.report.arms import with_arm
from lorabench.report.numbers import counted, mean_std, over
from lorabench.results import METRICS, Result, Summary
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
        columns=("representation", "features", *_TITLES.values(), *(_SPENT if several else ())),
        rows=[(row.representation, *_cells(row), *(_spent(row) if several else ())) for row in rows],
        caption=[
            counted(result),
            f"mean ± std over {_over(result)}, in % · chance {100 * result.chance:.1f}",
            *(f"{row.representation} failed: {error}" for row in rows for error in row.failed),
        ],
        text=("representation", "classifier"),
        spare=("train acc", "features", "val acc", "macro-F1", "AUROC", *_SPENT[1:]),
    )


def every_arm(result: Result) -> Sheet:
    """Every metric of every representation and kind of arm: beyond a terminal's patience."""
    return Sheet(
        title="Every arm",
        columns=("representation", "ablation", "features", *_TITLES.values()),
        rows=[(row.representation, row.ablation, *_cells(row)) for row in result.summary],
        caption=[f"mean ± std over {_over(result)}, in %"],
        text=("representation", "ablation"),
        long=True,
    )


def _cells(row: Summary) -> tuple[str, ...]:
    return (str(row.features or "–"), *(mean_std(getattr(row, name), row) for name in METRICS))


def _spent(row: Summary) -> tuple[str, ...]:
    """What a row's members are, and what their training took: seconds of all, numbers of one."""
    return row.classifier, str(row.tries), f"{row.seconds:.0f}", f"{row.parameters:.0f}"


def _over(result: Result) -> str:
    count = max((row.test_accuracy.n for row in with_arm(result, "none")), default=0)
    return "seeds" if result.split.get("splits", 1) == 1 else over(result, count)
