"""Altered copies of the test adapters as further rows of a zoo, so that one training answers for all of them.

A member's logits are computed for all rows of a zoo. The copies stand behind its own rows, which keep their numbers:
training and validation are what they were, and every copy is paired with the adapter that it is of.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64, Int64

from lorabench.ablation.altered import Alteration
from lorabench.ablation.study import Findings, Study, measured
from lorabench.classifiers import Fitted, Problem
from lorabench.errors import LorabenchError
from lorabench.evaluation import Evaluation, Evaluator, Probe, merged
from lorabench.evaluation.members import scores_on_test
from lorabench.findings import Compared, Finding, Number
from lorabench.machine import free_memory
from lorabench.zoo import Stack, Zoo
from lorabench.zoo.splits import Split

__all__ = ["NONE", "Altered", "Copied", "altered_rows", "copied_zoo", "evaluate_copies"]

NONE = "none"
"""The adapters as they are."""


@dataclass(frozen=True)
class Copied:
    """What every representation says of the test adapters, as they are and altered.

    Attributes:
        study: whose test adapters are those that were altered, and no others.
        found: representation -> alteration -> evaluation; `NONE` is that of the adapters as they are.
    """

    study: Study
    found: Mapping[str, Mapping[str, Evaluation]]

    def findings(self, found: Finding) -> Findings:
        """What was found, with a row a representation for the adapters as they are."""
        plain = [(self.found[name][NONE], make()) for name, make in self.study.chosen.items()]
        summary = [self.study.row([one], representation, NONE) for one, representation in plain]
        return Findings([run for one, _ in plain for run in self.study.runs([one])], summary, found)


@dataclass(frozen=True, kw_only=True)
class Altered(Compared):
    """The difference of a representation's accuracy on altered adapters to that on the same adapters as they are.

    Attributes:
        alteration: what was done.
        accuracy: on the altered adapters; the mean over draws.
        before: on the adapters as they are.
        same: share of the predictions that are equal, over members and adapters.
    """

    alteration: str
    accuracy: Number
    before: Number
    same: Number


def altered_rows(copied: Copied, arms: Mapping[str, Sequence[str]]) -> list[Altered]:
    """A row a representation and arm; a representation that failed has none.

    Args:
        copied: every evaluation.
        arms: name of a row -> the alterations whose mean it is.
    """
    rows = []
    for name, found in copied.found.items():
        plain = found[NONE]
        for arm, names in arms.items():
            altered = [found[one] for one in names]
            difference = copied.study.difference(altered, [plain])
            (before,) = measured([plain], copied.study)
            if difference is None or before is None:
                continue
            tested = plain.test_labels >= 0
            tested[[run.error is not None for run in plain.runs]] = False
            rows.append(
                Altered(
                    **vars(difference),
                    representation=name,
                    alteration=arm,
                    accuracy=before.mean + difference.difference,
                    before=before.mean,
                    same=float(np.mean([(one.test == plain.test)[tested].mean() for one in altered])),
                )
            )
    return rows


def copied_zoo(zoo: Zoo, rows: Int64[np.ndarray, " m"], copies: Mapping[str, Zoo]) -> Zoo:
    """The zoo with copies of its adapters `rows` behind it: row N + k·m + i is copy k of `rows[i]`.

    Labels are those of the adapters; the names say which copy it is. What a copy shares with the zoo is not held twice.

    Args:
        zoo: N adapters.
        rows: m of them.
        copies: name -> zoo of m adapters.
    """
    n = len(zoo)
    wide = zoo.rows(np.concatenate([np.arange(n), *[rows] * len(copies)]))
    names = [f"{zoo.labels.adapters[row]} ({name})" for name in copies for row in rows]
    layers = {name: _behind(stack, [one.layers[name] for one in copies.values()]) for name, stack in zoo.layers.items()}
    contents = hashlib.blake2b(digest_size=16)
    for stack in layers.values():
        own = stack.rows(np.arange(n, len(stack)))
        contents.update(np.ascontiguousarray(own.read(0, len(own))).data)
    rank, scale = (
        np.concatenate([getattr(one, side) for one in (zoo, *copies.values())]) for side in ("rank", "scale")
    )
    for sizes in (rank, scale):
        contents.update(np.ascontiguousarray(sizes).data)
    return replace(
        wide,
        layers=layers,
        rank=rank,
        scale=scale,
        labels=replace(wide.labels, adapters=(*zoo.labels.adapters, *names)),
        fingerprint=f"{wide.fingerprint}-{contents.hexdigest()}",
    )


def _behind(stack: Stack, copies: Sequence[Stack]) -> Stack:
    """One layer of a zoo, and behind it that of its copies."""
    pieces, total = list(stack.pieces), sum(map(len, stack.pieces))
    index = [np.arange(total) if stack.index is None else stack.index]
    for copy in copies:
        if copy.pieces is stack.pieces:  # as it was
            index.append(np.arange(total) if copy.index is None else copy.index)
            continue
        count = sum(map(len, copy.pieces))
        index.append(total + (np.arange(count) if copy.index is None else copy.index))
        pieces += copy.pieces
        total += count
    return Stack(tuple(pieces), np.concatenate(index))


def evaluate_copies(
    study: Study,
    alterations: Mapping[str, Alteration],
    adapters: int | None = None,
    names: Collection[str] | None = None,
) -> Copied:
    """Train every representation once a split, and test it on the test adapters as they are and altered.

    Args:
        study: the splits and the representations.
        alterations: by name.
        adapters: how many test adapters of a split are altered, a draw; None: all.
        names: of the adapters that may be altered; None: any.

    Raises:
        LorabenchError: the copies do not fit into memory, or no test adapter has such a name.
    """
    splits: list[Split] = []
    found: dict[str, list[dict[str, Evaluation]]] = {name: [] for name in study.chosen}
    for evaluator in study.evaluators:
        rows = _chosen(evaluator, adapters, names)
        _check_memory(evaluator.zoo, len(rows), len(alterations))
        splits.append(replace(evaluator.split, test=rows))
        copies = _copies(evaluator, rows, alterations)
        wide = study.by([_on_copies(evaluator, rows, copies)])
        for name, make in study.chosen.items():
            (one,) = wide.evaluate(name, make(), [wide.all_layers()], _tested_by(rows, evaluator.values))
            found[name].append(_apart(one, len(rows), [NONE, *alterations]))
    of_all = {
        name: {key: merged([one[key] for one in by_split], splits) for key in (NONE, *alterations)}
        for name, by_split in found.items()
    }
    own = [replace(one, split=split) for one, split in zip(study.evaluators, splits, strict=True)]
    return Copied(study.by(own), of_all)


def _chosen(evaluator: Evaluator, adapters: int | None, names: Collection[str] | None) -> Int64[np.ndarray, " m"]:
    """The test adapters that are altered, ascending."""
    test = evaluator.split.test
    if names is not None:
        test = test[[evaluator.zoo.labels.adapters[row] in names for row in test]]
    if not len(test):
        raise LorabenchError("ablation.other: it has no test adapter of a split by its name; a larger one is needed")
    if adapters is None or adapters >= len(test):
        return test
    return np.sort(np.random.default_rng(evaluator.seeds[0]).choice(test, adapters, replace=False))


def _check_memory(zoo: Zoo, rows: int, alterations: int) -> None:
    each = 4 * alterations * sum(stack.shape[1] * stack.shape[2] for stack in zoo.layers.values())
    free = free_memory(torch.device("cpu")) // 2  # the other half is for features
    if rows * each > free:
        raise LorabenchError(
            f"{alterations} altered copies of {rows} test adapters take {rows * each / 1e9:.1f} GB; "
            f"{free / 1e9:.1f} GB may be taken: give ablation.adapters={max(1, free // each)}, or fewer alterations"
        )


def _copies(
    evaluator: Evaluator, rows: Int64[np.ndarray, " m"], alterations: Mapping[str, Alteration]
) -> dict[str, Zoo]:
    own, seed = evaluator.zoo.rows(rows), evaluator.seeds[0]
    return {
        name: alter(own, np.random.default_rng([seed, number]))
        for number, (name, alter) in enumerate(alterations.items())
    }


def _on_copies(evaluator: Evaluator, rows: Int64[np.ndarray, " m"], copies: Mapping[str, Zoo]) -> Evaluator:
    """The evaluator of the same training, whose test rows are `rows` and all their copies."""
    n = len(evaluator.zoo)
    test = np.concatenate([rows, np.arange(n, n + len(copies) * len(rows))])
    return replace(
        evaluator,
        zoo=copied_zoo(evaluator.zoo, rows, copies),
        labels=np.concatenate([evaluator.labels, *[evaluator.labels[rows]] * len(copies)]),
        split=replace(evaluator.split, test=test),
        # what is told of a fitted representation is told of the zoo's own adapters
        on_fitted=lambda name, fitted, features: evaluator.on_fitted(
            name, fitted, {unit: values[:n] for unit, values in features.items()}
        ),
    )


def _tested_by(rows: Int64[np.ndarray, " m"], values: Float64[np.ndarray, " classes"] | None) -> Probe:
    """Measures the test metrics of a member on the adapters as they are."""

    def measure(fitted: Fitted, problem: Problem, widths: Mapping[str, int]) -> dict[str, float]:
        del widths
        labels = problem.labels[fitted.member.labels].cpu()
        return scores_on_test(fitted.logits[rows], labels[rows], problem.n_classes, values)

    return Probe(f"the first {len(rows)} test adapters", measure)


def _apart(found: Evaluation, count: int, names: Sequence[str]) -> dict[str, Evaluation]:
    """An evaluation of adapters and their copies as one for each: `count` columns a name.

    The runs are those of the adapters as they are.
    """
    tested = zip(found.runs, found.probes, strict=True)
    runs = tuple(run if run.error else replace(run, metrics={**run.metrics, **own}) for run, own in tested)
    apart = {}
    for number, name in enumerate(names):
        columns = slice(number * count, (number + 1) * count)
        tables = {key: getattr(found, key)[:, columns] for key in ("test", "test_labels", "test_correct")}
        apart[name] = replace(found, arm=replace(found.arm, name=name), runs=runs, **tables)
    return apart
