"""What ranked the layers, and the words for it in tables and pictures."""

from lorabench.ablation.compare import CompareFinding
from lorabench.ablation.layers import LayersFinding
from lorabench.findings import OrderedFinding, RankedFinding
from lorabench.report.numbers import interval, number, p_value, percent
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["BEST", "how_ranked", "marked_units", "on_test", "ranked_on", "ranking_sheet", "sheet_title", "warning"]

BEST = 20
"""Layers that a table shows."""


def on_test(result: Result) -> bool:
    """Whether the test split ranked the layers, which must then be said."""
    return isinstance(result.ablation, OrderedFinding) and result.ablation.rank_on == "test"


def ranked_on(result: Result) -> str:
    """The accuracy that ranked the layers: "test", "validation" or "cross-validated"."""
    if on_test(result):
        return "test"
    return "cross-validated" if _folds(result) > 1 else "validation"


def how_ranked(result: Result) -> str:
    """The same, as a caption says it."""
    if on_test(result):
        return "TEST"
    folds = _folds(result)
    return ranked_on(result) + (f" ({folds} folds, no test adapters)" if folds > 1 else "")


def _folds(result: Result) -> int:
    return result.ablation.folds if isinstance(result.ablation, RankedFinding) else 1


def warning(result: Result) -> list[str]:
    """What must be said where the test split ranked, and of the published protocol."""
    mark = [result.published["protocol"]] if result.published else []
    if not on_test(result):
        return mark
    return [
        "RANKED ON THE TEST SPLIT (the published protocol): these layers were chosen by the labels they are tested on,",
        "so their test accuracy is too high, and the fall without them may be too large.",
        *mark,
    ]


def sheet_title(result: Result, text: str) -> str:
    """The title of a table, with what ranked where that is the test split."""
    return f"{text} – ranked on the TEST split" if on_test(result) else text


def marked_units(found: RankedFinding) -> tuple[set[str], str]:
    """The best k of the ranking, and what a legend calls them."""
    best = {row.layer for row in found.ranking[: found.marked]}
    return best, f"taken away (best {len(best)})" if isinstance(found, CompareFinding) else f"best {len(best)}"


def ranking_sheet(result: Result, found: RankedFinding) -> Sheet:
    """The best layers, each alone."""
    other = "val" if on_test(result) else "test"
    ranked = {"test": "test", "validation": "val", "cross-validated": "cv"}[ranked_on(result)]
    # Beside another question, the ranking is an aside.
    shown = BEST if found.phase() == "layers" else max(5, min(found.marked, BEST))
    count = len(found.ranking)
    more = f"; the first {shown} of {count}, all are in layers.json" if count > shown else ""
    return Sheet(
        title=sheet_title(
            result, f"Layers of {result.dataset['name']} by what each alone says about the {result.target}"
        ),
        columns=(
            "rank", "layer", f"{ranked} acc [95 %]", f"{other} acc", "p", "p, Holm", "cannot be\ntold from",
        ),
        rows=[
            (
                str(row.rank),
                row.layer,
                percent(row.accuracy) + interval(row),
                percent(row.val_accuracy if on_test(result) else row.test_accuracy),
                p_value(row.p),
                p_value(row.holm),
                f"{row.rank}–{row.tied_to}" if row.tied_to > row.rank else "–",
            )
            for row in found.ranking[:shown]
        ],
        caption=[
            f"{found.baseline} of one layer each, ranked on {how_ranked(result)} accuracy{more}",
            f"mean over seeds, in %, [bootstrap over seeds and adapters] · chance {percent(result.chance)}",
            f"p: of no difference to the best layer; Holm: corrected for {count - 1} of them",
            _agreement(found),
            *_depth(found),
            *(f"left out: {reason}" for reason in found.dropped_seeds),
            *warning(result),
        ],
        text=("layer",),
        names=("layer",),
        spare=(f"{other} acc", "p", "cannot be\ntold from", "p, Holm"),
    )  # fmt: skip


def _agreement(found: RankedFinding) -> str:
    stable = found.stability
    if stable.kendall_tau is not None:
        return (
            f"Kendall's τ between {stable.seeds} {stable.of} {stable.kendall_tau:.2f} (lowest "
            f"{number(stable.lowest):.2f})"
        )
    if stable.seeds > 1:
        return "seeds that rate all layers alike: nothing is known of the ranking's stability"
    return "no pair of seeds to compare: nothing is known of the ranking's stability"


def _depth(found: RankedFinding) -> list[str]:
    """How accuracy goes with depth, by what layers have in common."""
    rows = found.depth if isinstance(found, LayersFinding) else []
    said = [f"{row.layers} {row.rho:+.2f} [{row.low:+.2f}, {row.high:+.2f}]" for row in rows]
    return ["accuracy with depth, Spearman's ρ [95 %]: " + ", ".join(said)] if said else []
