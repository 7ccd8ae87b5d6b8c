"""The tables of an ablation: one for everything that it found."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lorabench.report.arms import Arm, on_test, ranked_on, shown_arms, with_arm
from lorabench.report.numbers import (
    counted,
    difference,
    interval,
    mean_std,
    method,
    number,
    over,
    p_value,
    percent,
    spread,
)
from lorabench.report.sheet import Sheet
from lorabench.report.verdicts import verdict_lines
from lorabench.results import Result, claimed

__all__ = ["ablation_sheets"]

_BEST = 20
_STEPS = 24


def ablation_sheets(result: Result) -> list[Sheet]:
    """The tables of what is there, the ranking first."""
    makers: dict[str, Callable[[Result], Sheet]] = {
        "ranking": _ranking,
        "curve": _curve,
        "groups": _groups,
        "clusters": _clusters,
        "concepts": _concepts,
        "attribution": _attribution,
        "redundancy": _redundancy,
    }
    found = {name: make(result) for name, make in makers.items() if result.ablation.get(name)}
    if shown_arms(result):
        found["arms"] = _compared(result)
    return list(found.values())


def _warning(result: Result) -> list[str]:
    mark = [result.published["protocol"]] if result.published else []
    if not on_test(result):
        return mark
    return [
        "RANKED ON THE TEST SPLIT (the published protocol): these layers were chosen by the labels they are tested on,",
        "so their test accuracy is too high, and the fall without them may be too large.",
        *mark,
    ]


def _title(result: Result, text: str) -> str:
    return f"{text} – ranked on the TEST split" if on_test(result) else text


def _how(result: Result) -> str:
    """What ranked, as a caption says it."""
    folds = f" ({result.ablation.get('folds')} folds, no test adapters)"
    return "TEST" if on_test(result) else ranked_on(result) + (folds if ranked_on(result) == "cross-validated" else "")


def _ranking(result: Result) -> Sheet:
    """The best layers, each alone."""
    found = result.ablation
    other = "val" if on_test(result) else "test"
    ranked = {"test": "test", "validation": "val", "cross-validated": "cv"}[ranked_on(result)]
    stable, layers = found.get("stability"), found["ranking"]
    # Beside another question, the ranking is an aside.
    shown = _BEST if found["name"] == "layers" else max(5, min(found.get("top_k") or 0, _BEST))
    more = f"; the first {shown} of {len(layers)}, all are in layers.json" if len(layers) > shown else ""
    agreement = "no pair of seeds to compare: nothing is known of the ranking's stability"
    if stable and stable.get("kendall_tau") is not None:
        agreement = (
            f"Kendall's τ between {stable['seeds']} {stable.get('of', 'seeds')} {stable['kendall_tau']:.2f} "
            f"(lowest {stable['lowest']:.2f})"
        )
    elif stable and stable["seeds"] > 1:
        agreement = "seeds that rate all layers alike: nothing is known of the ranking's stability"
    return Sheet(
        title=_title(result, f"Layers of {result.dataset['name']} by what each alone says about the {result.target}"),
        columns=(
            "rank",
            "layer",
            f"{ranked} acc [95 %]",
            f"{other} acc",
            "p",
            "p, Holm",
            "cannot be\ntold from",
        ),
        rows=[
            (
                str(row["rank"]),
                row["layer"],
                percent(row["accuracy"]) + interval(row),
                percent(row[f"{other}_accuracy"]),
                p_value(row.get("p")),
                p_value(row.get("holm")),
                f"{row['rank']}–{row['tied_to']}" if row["tied_to"] > row["rank"] else "–",
            )
            for row in layers[:shown]
        ],
        caption=[
            f"{found['baseline']} of one layer each, ranked on {_how(result)} accuracy{more}",
            f"mean over seeds, in %, [bootstrap over seeds and adapters] · chance {percent(result.chance)}",
            f"p: of no difference to the best layer; Holm: corrected for {len(layers) - 1} of them",
            agreement,
            *_depth(found.get("depth") or []),
            *(f"left out: {reason}" for reason in found.get("dropped_seeds") or []),
            *_warning(result),
        ],
        text=("layer",),
        names=("layer",),
        spare=(f"{other} acc", "p", "cannot be\ntold from", "p, Holm"),
    )


def _depth(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How accuracy goes with depth, by what layers have in common."""
    said = [
        f"{row['layers']} {number(row['rho']):+.2f} [{number(row['low']):+.2f}, {number(row['high']):+.2f}]"
        for row in rows
    ]
    return ["accuracy with depth, Spearman's ρ [95 %]: " + ", ".join(said)] if said else []


def _compared(result: Result) -> Sheet:
    """Every representation with and without the best layers, and the controls."""
    columns = {"features": {row.representation: str(row.features) for row in with_arm(result, "none") if row.features}}
    spare = []
    for arm in shown_arms(result):
        header = arm.title.replace(" ", "\n", 1)
        columns[header] = {row.representation: mean_std(row.test_accuracy, row) for row in with_arm(result, arm.name)}
        if arm.kind == "top":
            columns |= _differences(result, arm)
        elif arm.kind != "none":
            spare.append(header)
    names = list(dict.fromkeys(row.representation for row in result.summary))
    return Sheet(
        title=_title(result, f"What {result.dataset['name']} says about the {result.target}, with and without layers"),
        columns=("representation", *columns),
        rows=[(name, *(column.get(name, "–") for column in columns.values())) for name in names],
        caption=_compared_caption(result, shown_arms(result)),
        text=("representation",),
        spare=("features", *reversed(spare[1:]), "p", *spare[:1], "p, Holm"),
    )


def _differences(result: Result, arm: Arm) -> dict[str, dict[str, str]]:
    rows = [
        row
        for row in result.ablation.get("differences") or []
        if row["ablation"] == arm.name and row["against"] == "none"
    ]
    if not rows:
        return {}
    return {
        "difference\n[95 %]": {row["representation"]: difference(row["difference"], claimed(row)) for row in rows},
        "p": {row["representation"]: p_value(claimed(row)["p"]) for row in rows},
        **({"p, Holm": {row["representation"]: p_value(row["holm"]) for row in rows}} if "holm" in rows[0] else {}),
    }


def _compared_caption(result: Result, arms: Sequence[Arm]) -> list[str]:
    seeds = max((row.test_accuracy.n for row in with_arm(result, "none")), default=0)
    taken = next((f"{arm.layers} of {result.dataset['layers']} layers taken away" for arm in arms if arm.layers), "")
    draws = next((f"random: mean of {arm.draws} sets" for arm in arms if arm.draws), "")
    said = (
        f"test accuracy, mean ± std over {over(result, seeds)}, in %",
        taken,
        draws,
        f"chance {percent(result.chance)}",
    )
    pairs = [
        f"difference: to all layers, in points, paired; its interval and p are {method(row)}"
        for row in (result.ablation.get("differences") or [])[:1]
    ]
    names = {arm.name: arm.title for arm in arms}
    reasons: dict[str, list[str]] = {}
    for row in result.summary:
        for error in dict.fromkeys(row.failed):
            reasons.setdefault(f"{row.representation} failed: {error}", []).append(
                names.get(row.ablation, row.ablation)
            )
    failed = [
        reason if len(where) == len(arms) else f"{reason} ({', '.join(where)})" for reason, where in reasons.items()
    ]
    lines = [counted(result), " · ".join(text for text in said if text), *pairs, *_beside_random(result, arms)]
    return [*lines, *verdict_lines(result), *_warning(result), *failed]


def _beside_random(result: Result, arms: Sequence[Arm]) -> list[str]:
    """Where the best layers are missed more than as many random ones."""
    drawn = {arm.name: arm for arm in arms if arm.kind == "random"}
    rows = [row for row in result.ablation.get("differences") or [] if row["against"] in drawn]
    if not rows:
        return []
    below = [
        f"{row['representation']} ({difference(row['difference'], claimed(row))})"
        for row in rows
        if number(claimed(row)["high"]) < 0
    ]
    beside = f"the best are missed more than {drawn[rows[0]['against']].title} (interval under 0) by"
    return [f"{beside}: {', '.join(below) or 'no representation'}"]


def _curve(result: Result) -> Sheet:
    """Layers removed one by one, and kept one by one."""
    curve = result.ablation["curve"]
    remove, keep, random = ({row["layers"]: row for row in curve.get(side) or []} for side in _SIDES)
    units = {count: row.get("unit") for count, row in [*keep.items(), *remove.items()] if row.get("unit")}
    return Sheet(
        title=_title(result, f"{curve['representation']} of {result.dataset['name']} as layers go, best first"),
        columns=("k", "layer of rank k", "without the k best", "the k best alone", "without k random"),
        rows=[
            (
                str(k),
                units.get(k, "–"),
                *(_step(side.get(k)) for side in (remove, keep)),
                percent(random[k]["accuracy"]) + interval(random[k]) if k in random else "–",
            )
            for k in _chosen(sorted({*remove, *keep}), sorted(random))
        ],
        caption=[
            f"test accuracy, mean ± std over seeds [95 %], in % · chance {percent(result.chance)}",
            "random: mean [lowest, highest draw]",
            *(["steps evenly spaced; results.json and the picture have all"] if len({*remove, *keep}) > _STEPS else []),
            *_warning(result),
        ],
        text=("layer of rank k",),
        names=("layer of rank k",),
        spare=("layer of rank k", "the k best alone", "without k random"),
    )


_SIDES = ("remove", "keep", "random")


def _step(row: dict[str, Any] | None) -> str:
    return "–" if row is None else percent(row["accuracy"]) + spread(row.get("std")) + interval(row)


def _chosen(counts: Sequence[int], drawn: Sequence[int]) -> list[int]:
    """The first and the last count, those with random draws, and others evenly between, `_STEPS` at most."""
    found = {counts[0], counts[-1], *_evenly([count for count in drawn if count in set(counts)], _STEPS - 2)}
    for count in _evenly(counts, _STEPS):
        if len(found) < _STEPS:
            found.add(count)
    return sorted(found)


def _evenly(values: Sequence[int], most: int) -> list[int]:
    if len(values) <= most:
        return list(values)
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, most)]


def _groups(result: Result) -> Sheet:
    """Whole groups of layers, alone and taken away."""
    found = result.ablation["groups"]
    return Sheet(
        title=_title(result, f"{found['representation']} of {result.dataset['name']} by {found['by']}"),
        columns=("group", "layers", "alone", "without it", "difference\n[95 %]", "p"),
        rows=[
            (
                row["group"],
                str(row["layers"]),
                *(_statistic(row.get(side)) for side in ("alone", "without")),
                difference(row.get("difference"), row),
                p_value(row.get("p")),
            )
            for row in found["rows"]
        ],
        caption=[
            f"test accuracy, mean ± std over seeds [95 %], in % · chance {percent(result.chance)}",
            f"best first by {_how(result)} accuracy alone",
            "difference: without it minus all layers, in points, paired",
            *_warning(result),
        ],
        text=("group",),
        names=("group",),
        spare=("layers", "p", "alone"),
    )


def _statistic(found: dict[str, Any] | None) -> str:
    return "–" if found is None else percent(found["mean"]) + spread(found.get("std")) + interval(found)


def _clusters(result: Result) -> Sheet:
    """Layers that answer alike."""
    found = result.ablation["clusters"]
    ids, rows, own = found["cluster"], [], found.get("between_seeds")
    for cluster in dict.fromkeys(ids[leaf] for leaf in found["order"]):
        members = [found["layers"][leaf] for leaf in found["order"] if ids[leaf] == cluster]
        rows += [
            (str(cluster) if first else "", str(len(members)) if first else "", layer)
            for first, layer in ((i == 0, layer) for i, layer in enumerate(members))
        ]
    return Sheet(
        title=_title(result, f"Layers of {result.dataset['name']} whose members answer alike"),
        columns=("cluster", "layers", "layer"),
        rows=rows,
        caption=[
            "distance: how often two layers name different classes; neighbours here are neighbours in the tree",
            *(["no two layers answer alike at this cut"] if len(set(ids)) == len(ids) else []),
            f"cut at {found['threshold']:.2f}" + ("" if own is None else f" · two seeds of one layer: {own:.2f}"),
        ],
        text=("layer",),
        names=("layer",),
        spare=("layers",),
    )


def _concepts(result: Result) -> Sheet:
    """The layer that knows each class best."""
    found = result.ablation["concepts"]
    best = found["best"]
    return Sheet(
        title=_title(result, f"The layer of {result.dataset['name']} that knows each {result.target} best"),
        columns=("class", "recall", "layer"),
        rows=[
            (name, percent(best[name]["recall"]), best[name]["layer"]) if best.get(name) else (name, "–", "–")
            for name in found["classes"]
        ],
        caption=[
            "recall: share of the class's test adapters that the layer alone finds, mean over seeds, in %",
            "the layer is the one with the best validation recall",
            *_taus(found),
        ],
        text=("class", "layer"),
        names=("layer",),
    )


def _taus(found: dict[str, Any]) -> list[str]:
    between, within = found.get("tau_between_classes"), found.get("tau_within_classes")
    if between is None or within is None:
        return []
    said = f"{between:.2f} between halves of two classes, {within:.2f} between those of one"
    return [f"Kendall's τ of the layers' order: {said}"]


def _attribution(result: Result) -> Sheet:
    """The layers that the classifier of all layers leans on."""
    found = result.ablation["attribution"]
    rows = sorted(found["rows"], key=lambda row: -row["share"])
    return Sheet(
        title=_title(result, f"Where the classifier of {found['representation']} over all layers looks"),
        columns=("layer", "share", "alone"),
        rows=[(row["layer"], percent(row["share"]) + spread(row.get("std")), percent(row["accuracy"])) for row in rows][
            :_BEST
        ],
        caption=_beside(result, "integrated gradients summed by layer, share ± std over seeds, in %", found, len(rows)),
        text=("layer",),
        names=("layer",),
        spare=("alone",),
    )


def _redundancy(result: Result) -> Sheet:
    """What is lost when one layer alone goes."""
    found = result.ablation["redundancy"]
    rows = sorted(found["rows"], key=lambda row: -row["drop"])
    return Sheet(
        title=_title(result, f"What {found['representation']} of {result.dataset['name']} loses without one layer"),
        columns=("layer", "loss\n[95 %]", "p", "alone"),
        rows=[
            (row["layer"], difference(row["drop"], row), p_value(row.get("p")), percent(row["accuracy"]))
            for row in rows[:_BEST]
        ],
        caption=_beside(result, "loss: test accuracy of all layers minus that without the one", found, len(rows)),
        text=("layer",),
        names=("layer",),
        spare=("p", "alone"),
    )


def _beside(result: Result, text: str, found: dict[str, Any], count: int) -> list[str]:
    more = f"the first {_BEST} of {count}, all are in results.json" if count > _BEST else f"all {count}"
    tau = found.get("kendall_tau")
    agreement = "" if tau is None else f" · Kendall's τ with the accuracy alone {tau:.2f}"
    alone = f"alone: test accuracy of {result.ablation['baseline']} of one layer"
    return [text, f"{more} · {alone} · chance {percent(result.chance)}{agreement}"]
