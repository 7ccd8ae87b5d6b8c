"""A comparison under the keys of the published results."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorabench.results import Run
from lorabench.text import some

__all__ = ["protocol_mark", "published_results"]

_METRICS = {
    "val_acc": "val_accuracy",
    "test_acc": "test_accuracy",
    "val_f1": "val_macro_f1",
    "test_f1": "test_macro_f1",
}


def protocol_mark(deviations: Sequence[str]) -> str:
    """What a run under these keys is, in a line.

    Args:
        deviations: settings in which it is not the published protocol.
    """
    if deviations:
        return f"the published keys, but not the published protocol: {some(deviations)}"
    return (
        "the published protocol: ungrouped split, stopped on validation accuracy, layers ranked on the test split; "
        "its test accuracies are too high"
    )


def published_results(
    runs: Sequence[Run], layers: int, removed: int, top_layers: Sequence[str], deviations: Sequence[str]
) -> dict[str, Any]:
    """What `results.json` has under the keys of its origin.

    A representation without a member that ended well has no row, as in the origin; `summary` says why it failed.

    Args:
        runs: every member, with all layers (`none`) and without the best k (`top-k`).
        layers: how many the zoo has.
        removed: how many of them are taken away.
        top_layers: the best, best first.
        deviations: settings in which the run is not the published protocol.
    """
    top_k = len(top_layers)
    return {
        "protocol": protocol_mark(deviations),
        "top_k_ablated": top_k,
        "num_runs": len({(run.seed, run.split) for run in runs}),
        "top_layers": list(top_layers),
        "ablation_results": _rows(runs, f"top-{top_k}", "", layers, removed),
        "baseline_results": _rows(runs, "none", "_baseline", layers, 0),
    }


def _rows(runs: Sequence[Run], ablation: str, suffix: str, layers: int, removed: int) -> list[dict[str, Any]]:
    """One a representation: mean and population standard deviation over its members that ended well."""
    good: dict[str, list[Run]] = {}
    for run in runs:
        if run.ablation == ablation and run.error is None:
            good.setdefault(run.representation, []).append(run)
    rows = []
    for name, own in good.items():
        row: dict[str, Any] = {
            "representation": f"{name}{suffix}",
            "num_layers": layers - removed,
            "num_ablated": removed,
        }
        for key, metric in _METRICS.items():
            values = [run.metrics[metric] for run in own]
            row |= {f"{key}_mean": float(np.mean(values)), f"{key}_std": float(np.std(values))}
        rows.append(row)
    return rows
