"""What W&B gets beside numbers: tables, the confusion matrix, pictures, files."""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import wandb

from lorabench.findings import RankedFinding
from lorabench.jobs import RESULTS
from lorabench.results import METRICS, Result, Run
from lorabench.tracking.names import prefix
from lorabench.tracking.wandb_runs import SENT_LATER

__all__ = ["log_to_wandb"]

_LOG = logging.getLogger(__name__)
_MEMBER = ("representation", "ablation", "split", "seed", "best_epoch", "epochs", "error")
_LAYER = ("layer", "rank", "accuracy", "low", "high", "std", "val_accuracy", "test_accuracy", "p", "holm")
_MOST_CLASSES = 100  # a row of a table is a pair of classes, and W&B shows 10,000; the picture is there for any number


def log_to_wandb(opened: wandb.Run, summary: Mapping[str, float], result: Result, folder: Path) -> None:
    """The summary, and what stands in the run's folder by now.

    What W&B does not take costs a warning and not the run, whose numbers are on the disk.

    Args:
        opened: the W&B run.
        summary: final numbers by name.
        result: what the run found.
        folder: the run's, with `results.json`, pictures and, of learned representations, `fitted`.
    """
    try:
        opened.summary.update(dict(summary))
        with _staged_within(Path(opened.dir).parent / "to_send"):
            opened.log({**_tables(result), **_pictures(folder)})
            for artifact in _artifacts(folder, opened.id):
                opened.log_artifact(artifact)
    except wandb.Error as error:
        _LOG.warning("W&B did not take all of this run (%s); %s is whole. %s", error, folder / RESULTS, SENT_LATER)


def _tables(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = {"member_results": _table([*_MEMBER, *METRICS], map(_member_row, result.runs))}
    if isinstance(result.ablation, RankedFinding):
        rows = ([getattr(row, key) for key in _LAYER] for row in result.ablation.ranking)
        found["layer_importance"] = _table(_LAYER, rows)
    for name in result.config["representations"]:
        members = [run for run in result.runs if (run.representation, run.ablation) == (name, "none") and not run.error]
        if members and len(result.classes) <= _MOST_CLASSES:
            key = f"{prefix(name, result.config['representations'])}confusion_matrix"
            found[key] = _confusion(result.classes, np.sum([run.confusion for run in members], axis=0))
    return found


def _table(columns: Any, rows: Any) -> wandb.Table:
    return wandb.Table(
        columns=list(columns), data=[[_cell(cell) for cell in row] for row in rows], allow_mixed_types=True
    )


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _member_row(run: Run) -> list[Any]:
    return [*(getattr(run, key) for key in _MEMBER), *(run.metrics.get(key, math.nan) for key in METRICS)]


def _confusion(classes: list[str], counts: np.ndarray) -> Any:
    """W&B's own chart, from counts and not from single predictions."""
    rows = [[classes[true], classes[said], int(counts[true, said])] for true, said in np.ndindex(counts.shape)]
    fields = {name: name for name in ("Actual", "Predicted", "nPredictions")}
    return wandb.plot_table("wandb/confusion_matrix/v1", _table(fields, rows), fields, {"title": "test predictions"})


def _pictures(folder: Path) -> dict[str, wandb.Image]:
    return {f"pictures/{path.stem}": wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}


def _artifacts(folder: Path, run_id: str) -> Iterator[wandb.Artifact]:
    """results.json, and the autoencoders of learned representations."""
    for kind, source in (("results", folder / RESULTS), ("fitted", folder / "fitted")):
        files = [path for path in (source, *sorted(source.rglob("*"))) if path.is_file()]
        if files:
            artifact = wandb.Artifact(f"{kind}-{run_id}", type=kind)
            for path in files:
                artifact.add_file(str(path), name=path.relative_to(folder).as_posix())
            yield artifact


@contextmanager
def _staged_within(place: Path) -> Iterator[None]:
    """Have W&B keep what is to be sent beside the run's file: its own place in the home may not outlive a container."""
    name = "WANDB_DATA_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(place)
    try:
        yield
    finally:
        del os.environ[name]
