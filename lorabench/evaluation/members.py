"""The members of an evaluation: which are to be trained, and what is kept of each."""

import base64
import functools
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

from lorabench.classifiers import (
    Fitted,
    Member,
    Problem,
    accuracy,
    expected_values,
    macro_f1,
    number_scores,
    scores,
)
from lorabench.evaluation.arm import Arm, Probe
from lorabench.evaluation.journal import digest
from lorabench.progress import bar
from lorabench.zoo.splits import Split

if TYPE_CHECKING:
    from lorabench.evaluation.evaluator import Evaluator

__all__ = ["Record", "Trained", "train"]


@dataclass(frozen=True)
class Record:
    """What is kept of one member.

    Attributes:
        measured: fields of a `Run`.
        val: predicted class of every validation row; -1 where the member failed.
        test: predicted class of every test row.
        probed: what a probe measured.
    """

    measured: dict[str, Any]
    val: Int64[np.ndarray, " val"]
    test: Int64[np.ndarray, " test"]
    probed: dict[str, float] = field(default_factory=dict)

    def packed(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "val": _packed(self.val), "test": _packed(self.test)}

    @classmethod
    def unpacked(cls, data: dict[str, Any]) -> "Record":
        """From JSON."""
        return cls(**{**data, "val": _unpacked(data["val"]), "test": _unpacked(data["test"])})


def _packed(codes: Int64[np.ndarray, " n"]) -> str:
    return base64.b64encode(zlib.compress(codes.astype("<i4").tobytes())).decode()


def _unpacked(text: str) -> Int64[np.ndarray, " n"]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4").astype(np.int64)


@dataclass(frozen=True)
class Trained:
    """What is to be trained: a feature set of `problem` an arm.

    Attributes:
        problem: features, labels and rows.
        keys: what the features of an arm depend on, beside what all members of the evaluator share.
        widths: length of every unit's features, in their order, for every arm.
        arms: the arms.
        probe: what else to measure.
    """

    problem: Problem
    keys: Sequence[dict[str, Any]]
    widths: Sequence[Mapping[str, int]]
    arms: Sequence[Arm]
    probe: Probe | None


def train(evaluator: "Evaluator", name: str, trained: Trained) -> list[list[Record]]:
    """The records of every arm and seed; what the journal has is not trained again."""
    probe = None if trained.probe is None else trained.probe.name
    seeds, journal = evaluator.seeds, evaluator.journal
    keys = [digest(**key, seed=seed, probe=probe) for key in trained.keys for seed in seeds]
    members = [
        Member(seed, number, 1 + i if arm.permuted else 0)
        for number, arm in enumerate(trained.arms)
        for i, seed in enumerate(seeds)
    ]
    # Arms may leave a representation the same units: a module goes with either of its layers.
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    missing = sorted(i for key, i in first.items() if journal.get(key) is None)
    evaluator.tally.update(trained=len(missing), taken=len(keys) - len(missing))
    lap = _Lap()

    def finish(number: int, fitted: Fitted) -> None:
        record = _record(fitted, evaluator, trained, lap.seconds())
        journal.add(keys[missing[number]], record.packed())

    if missing:
        with bar(f"Train {name}", len(missing)) as shown:

            def on_epoch(epoch: int, finished: int) -> None:
                shown.advance(finished, note=f"epoch {epoch + 1}")

            wanted = [members[i] for i in missing]
            evaluator.engine.fit(evaluator.factory, trained.problem, wanted, finish, on_epoch)
    records = [Record.unpacked(journal.get(key) or {}) for key in keys]
    return [records[start : start + len(seeds)] for start in range(0, len(records), len(seeds))]


class _Lap:
    """Wall seconds since the last time that it was asked; any thread may ask."""

    def __init__(self) -> None:
        self._lock, self._last = threading.Lock(), time.perf_counter()

    def seconds(self) -> float:
        with self._lock:
            before, self._last = self._last, time.perf_counter()
            return self._last - before


def _record(fitted: Fitted, evaluator: "Evaluator", trained: Trained, seconds: float) -> Record:
    member, split = fitted.member, evaluator.split
    measured: dict[str, Any] = {
        "epochs": len(fitted.history),
        "history": fitted.history,
        "seconds": seconds,
        "parameters": fitted.parameters,
        "settings": fitted.settings,
    }
    if fitted.error is not None:
        val, test = (np.full(len(rows), -1, np.int64) for rows in (split.val, split.test))
        return Record({**measured, "error": fitted.error}, val, test)
    labels = trained.problem.labels[member.labels].cpu()
    tested = torch.from_numpy(split.test)
    metrics = _metrics(fitted, split, labels, trained.problem.n_classes)
    metrics |= scores_on_test(fitted.logits[tested], labels[tested], trained.problem.n_classes, evaluator.values)
    predicted = fitted.logits.argmax(-1).numpy()
    widths = trained.widths[member.features]
    probed = trained.probe.measure(fitted, trained.problem, widths) if trained.probe else {}
    return Record(
        {**measured, "best_epoch": fitted.best_epoch, "metrics": metrics},
        predicted[split.val],
        predicted[split.test],
        probed,
    )


def _metrics(fitted: Fitted, split: Split, labels: torch.Tensor, n_classes: int) -> dict[str, float]:
    train, val = (torch.from_numpy(rows) for rows in (split.train, split.val))
    measure = functools.partial(accuracy, n_classes=n_classes)
    found = {
        "train_accuracy": measure(fitted.logits[train], labels[train]),
        "val_accuracy": measure(fitted.logits[val], labels[val]),
        "val_macro_f1": macro_f1(fitted.logits[val].argmax(-1), labels[val], n_classes),
    }
    return {key: float(value) for key, value in found.items()}


def scores_on_test(
    logits: Float[torch.Tensor, "n classes"],
    labels: Int64[torch.Tensor, " n"],
    n_classes: int,
    values: Float64[np.ndarray, " classes"] | None,
) -> dict[str, float]:
    """What is told of a member on test adapters, each name with `test_` before it.

    Args:
        logits: of the adapters.
        labels: their classes.
        n_classes: number of classes.
        values: the number that each class stands for, which adds how far the expected number is from the true one.
    """
    found = scores(logits, labels, n_classes)
    if values is not None:
        numbers = torch.from_numpy(values)
        found |= number_scores(expected_values(logits, numbers), numbers[labels])
    return {f"test_{key}": float(value) for key, value in found.items()}
