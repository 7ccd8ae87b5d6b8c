"""What all ablation phases share: evaluations, the ranking of layers, rows of the table, paired differences."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64

from lorabench.ablation.crossed import Crossed, crossed
from lorabench.ablation.inference import corrected_t, holm
from lorabench.ablation.ranking import Ranking, rank_layers
from lorabench.ablation.statistics import interval, mean_correct, paired_difference, replicates
from lorabench.classifiers import ClassifierFactory, probe
from lorabench.classifiers.factors import FactorClassifier
from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm, Evaluation, Evaluator, Probe, held_out, held_out_rows, merged
from lorabench.findings import Compared, Corrected, Difference, Finding, Measured
from lorabench.representations import Representation
from lorabench.results import Run, Summary, summarise
from lorabench.zoo import Zoo
from lorabench.zoo.splits import Split

__all__ = ["Findings", "Study", "good_seeds", "measured", "with_holm"]

Row = TypeVar("Row", bound=Compared)
Found = TypeVar("Found")
_CANNOT_GO_ON = (LorabenchError, MemoryError, torch.OutOfMemoryError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""What makes one representation fail and lets the others go on."""


@dataclass(frozen=True)
class Findings:
    """What an ablation phase found.

    Attributes:
        runs: of the members that read several layers.
        summary: a row a representation and set of arms.
        ablation: everything else.
    """

    runs: list[Run]
    summary: list[Summary]
    ablation: Finding


@dataclass
class Study:
    """One zoo, the representations that were chosen, and the one that ranks layers.

    Attributes:
        evaluator: trains and tests, on the first split.
        classifier: its name, for the table.
        classes: names of the classes.
        chosen: makes the representations that are compared, by name.
        baseline: name of the representation that ranks, and what makes it; for a phase that ranks no layer, the
            first of the chosen.
        others: train and test on further splits, with seeds of their own.
        folds: of the cross-validation by which layers are ranked; 1: the validation adapters alone rank them.
        methods: name and factory of the classifier of those of the chosen (or the baseline) that have their own.
    """

    evaluator: Evaluator
    classifier: str
    classes: tuple[str, ...]
    chosen: Mapping[str, Callable[[], Representation]]
    baseline: tuple[str, Callable[[], Representation]]
    others: Sequence[Evaluator] = ()
    folds: int = 1
    methods: Mapping[str, tuple[str, ClassifierFactory]] = field(default_factory=dict)
    _of_methods: dict[str, list[Evaluator]] = field(init=False, repr=False, default_factory=dict)

    @property
    def evaluators(self) -> list[Evaluator]:
        """One a split; members of another split are other members."""
        return [self.evaluator, *self.others]

    def by(self, evaluators: Sequence[Evaluator]) -> "Study":
        """The same study by other evaluators, one a split."""
        return replace(self, evaluator=evaluators[0], others=evaluators[1:])

    def evaluators_of(self, name: str) -> list[Evaluator]:
        """One a split, with the classifier by which this representation is read."""
        if name not in self.methods:
            return self.evaluators
        if name not in self._of_methods:
            factory = self.methods[name][1]
            self._of_methods[name] = [replace(one, factory=factory) for one in self.evaluators]
        return self._of_methods[name]

    @property
    def splits(self) -> list[Split]:
        """The splits, of one zoo and the same classes."""
        return [one.split for one in self.evaluators]

    @property
    def split_of(self) -> Int64[np.ndarray, " members"]:
        """Number of every member's split."""
        return np.repeat(np.arange(len(self.evaluators)), [len(one.seeds) for one in self.evaluators])

    @property
    def zoo(self) -> Zoo:
        """The zoo with all its layers."""
        return self.evaluator.zoo

    @property
    def val_groups(self) -> Int64[np.ndarray, " val"] | None:
        """Groups of the adapters that any split validates."""
        found = self.zoo.labels.group
        return None if found is None else found[held_out_rows(self.splits, "val")]

    @property
    def test_groups(self) -> Int64[np.ndarray, " test"] | None:
        """Groups of the adapters that any split tests."""
        found = self.zoo.labels.group
        return None if found is None else found[held_out_rows(self.splits, "test")]

    def one(self, phase: str) -> tuple[str, Representation]:
        """The one representation of a phase that looks at one.

        Raises:
            LorabenchError: several were chosen.
        """
        if len(self.chosen) > 1:
            raise LorabenchError(
                f"ablation={phase} looks at one representation, and representations names {', '.join(self.chosen)}: "
                "leave representations out and give representation=NAME"
            )
        name, make = next(iter(self.chosen.items()))
        return name, make()

    def check_one_split(self, phase: str) -> None:
        """Refuse several splits.

        Raises:
            LorabenchError: there are.
        """
        if self.others:
            raise LorabenchError(f"ablation={phase} looks at one split, and splits={len(self.splits)}: give splits=1")

    def without(self, layers: set[str], name: str) -> Arm:
        """The arm in which these layers are taken away."""
        return Arm(name, tuple(layer for layer in self.zoo.layers if layer not in layers))

    def only(self, layers: set[str], name: str) -> Arm:
        """The arm in which these layers alone stand."""
        return Arm(name, tuple(layer for layer in self.zoo.layers if layer in layers))

    def all_layers(self) -> Arm:
        """The arm in which nothing is taken away."""
        return Arm("none", self.evaluator.everything)

    def evaluate(
        self, name: str, representation: Representation, arms: Sequence[Arm | Sequence[Arm]], probe: Probe | None = None
    ) -> list[Evaluation]:
        """`Evaluator.evaluate` on every split; where several representations are compared, one that fails says so.

        Args:
            name: what results call the representation.
            representation: makes the features.
            arms: the sets of layers to compare; a sequence has one a split, where splits take away layers of their own.
            probe: what else to measure on every member.
        """
        by_split = list(zip(*([one] * len(self.splits) if isinstance(one, Arm) else one for one in arms), strict=True))
        found = self.or_why(lambda: self._merged(name, representation, by_split, probe))
        return [Evaluation(name, arm, error=found) for arm in by_split[0]] if isinstance(found, str) else found

    def or_why(self, work: Callable[[], Found]) -> Found | str:
        """What a representation gives, or, where it is not the only one, why it cannot."""
        try:
            return work()
        except _CANNOT_GO_ON as error:
            if len(self.chosen) == 1:
                raise
            return str(error)

    def _merged(
        self, name: str, representation: Representation, arms: Sequence[Sequence[Arm]], probe: Probe | None = None
    ) -> list[Evaluation]:
        evaluators = self.evaluators_of(name)
        found = [one.evaluate(name, representation, own, probe) for one, own in zip(evaluators, arms, strict=True)]
        return [merged(of_arm, self.splits) for of_arm in zip(*found, strict=True)]

    def rank(self, rank_on: str, top_k: int | None = None) -> Ranking:
        """Every unit of the baseline representation alone.

        Args:
            rank_on: val, or test for the published protocol.
            top_k: how many of the best are to be taken away, where any are: told to be too many before the training.

        Raises:
            LorabenchError: the baseline describes whole adapters, `top_k` would leave nothing, or no seed has
                trained on every unit.
        """
        name, make = self.baseline
        representation = make()
        if representation.unit == "all":
            raise LorabenchError(
                f"ablation.baseline={name} describes whole adapters: take a representation of layers or modules, "
                "such as stats"
            )
        layers = self._layers_by_unit(name, representation, top_k)
        arms = [Arm(unit, tuple(sorted(own, key=self.evaluator.everything.index))) for unit, own in layers.items()]
        found = self._merged(name, representation, [arms] * len(self.splits))
        good, dropped = good_seeds(found)
        if len(set(self.split_of[good])) < len(self.splits):
            raise LorabenchError(f"a split has no seed that has trained on every layer. {dropped[0]}")
        test, tested = self.by_split(np.stack([one.test_correct[good] for one in found]), good, "test")
        folds, evaluators = self.folds if rank_on == "val" else 1, self.evaluators_of(name)
        within = self._validated(found, good) if folds == 1 else crossed(evaluators, name, representation, arms, folds)
        right = Crossed(test, self.test_groups, tested) if rank_on == "test" else within
        rows = rank_layers(
            list(layers), within.correct, test, rank_on, within.groups, self.test_groups,
            validated=within.cells, tested=tested,
        )  # fmt: skip
        orders = [[row.layer for row in rows]]
        if self.others:
            rates = {row.layer: row.per_seed for row in rows}
            # as many right answers keep the zoo's order: another split's numbers have seen this one's test adapters
            orders = [sorted(layers, key=lambda unit: -rates[unit][number]) for number in range(len(self.splits))]
        return Ranking(name, rank_on, folds, rows, orders, layers, found, right, dropped)

    def _layers_by_unit(
        self, name: str, representation: Representation, top_k: int | None
    ) -> dict[str, tuple[str, ...]]:
        """The layers of every unit, of which `top_k` must leave some."""
        layers = {unit: representation.layers_of(self.zoo, unit) for unit in representation.units(self.zoo)}
        most = len(layers) - 1
        if top_k is not None and not 1 <= top_k <= most:
            allowed = f"1 to {most} can be taken away" if most else "none can be taken away"
            raise LorabenchError(f"top_k={top_k}: the zoo has {len(layers)} units of {name}; {allowed}")
        return layers

    def _validated(self, found: Sequence[Evaluation], good: Sequence[int]) -> Crossed:
        """What every unit predicts right of the validation adapters alone."""
        val, validated = self.by_split(np.stack([one.val_correct[good] for one in found]), good, "val")
        return Crossed(val, self.val_groups, validated)

    def row(self, evaluations: Sequence[Evaluation], representation: Representation, ablation: str) -> Summary:
        """The row of one representation under arms that differ by the draw alone; a seed's draws are averaged."""
        first = evaluations[0]
        empty = [one for one in evaluations if not one.runs]
        by_arm = [one.runs or self.runs([one]) for one in empty[:1] or evaluations]
        by_seed = [_averaged(draws) for draws in zip(*by_arm, strict=True)]
        name = first.representation
        model = probe(self.evaluators_of(name)[0].factory)
        invariant = (model if isinstance(model, FactorClassifier) else representation).gauge_invariant
        classifier = self.methods[name][0] if name in self.methods else self.classifier
        row = summarise(by_seed, classifier, len(first.units), first.features, invariant, model.tried)
        return replace(row, ablation=ablation)

    def runs(self, evaluations: Sequence[Evaluation]) -> list[Run]:
        """The runs of some arms; an arm without any is one run that says why."""
        n_classes = self.evaluator.n_classes
        return [
            run
            for one in evaluations
            for run in one.confused(n_classes)
            or [Run(one.representation, one.arm.name, self.evaluator.seeds[0], error=one.error)]
        ]

    def findings(self, everything: Evaluation, representation: Representation, found: Finding) -> Findings:
        """What was found, with one row for the table: the representation on all layers, already evaluated."""
        return Findings(self.runs([everything]), [self.row([everything], representation, "none")], found)

    def baseline_findings(self, found: Finding) -> Findings:
        """The same with the row of the representation that ranks."""
        name, make = self.baseline
        representation = make()
        (everything,) = self.evaluate(name, representation, [self.all_layers()])
        return self.findings(everything, representation, found)

    def difference(self, first: Sequence[Evaluation], second: Sequence[Evaluation]) -> Difference | None:
        """Test accuracy of `first` minus that of `second`, paired by seed and adapter; draws are averaged first.

        None where no seed has trained on both. Over several splits `difference` is the mean over splits of the means
        over members, the bootstrap's rows are splits, and `corrected` is the corrected resampled t's interval and p.
        """
        paired = _paired(first, second)
        if paired is None:
            return None
        ours, theirs, good = paired
        if len(self.splits) == 1:
            return paired_difference(ours, theirs, self.test_groups)
        rows, tested = self.by_split(ours - theirs, good, "test")
        gains = mean_correct(rows[None], tested, 2).T
        found = paired_difference(rows, np.zeros_like(rows), self.test_groups, tested=tested)
        ratio = float(np.mean([len(split.test) / len(split.train) for split in self.splits]))
        corrected = corrected_t(gains, ratio)
        low, high = corrected.interval()
        beside = Corrected(low, high, corrected.p, corrected.error, len(gains))
        return replace(found, difference=corrected.mean, seeds=len(good), corrected=beside)

    def change(self, first: Sequence[Evaluation], second: Sequence[Evaluation]) -> float:
        """`difference` without what tells its error; NaN where no seed has trained on both."""
        paired = _paired(first, second)
        if paired is None:
            return math.nan
        ours, theirs, good = paired
        rows, tested = self.by_split(ours - theirs, good, "test")
        return float(mean_correct(rows[None], tested, 2).mean())

    def by_split(
        self,
        table: Bool[np.ndarray, "*arms members n"] | Float[np.ndarray, "*arms members n"],
        good: Sequence[int],
        part: Literal["val", "test"],
    ) -> tuple[np.ndarray, Bool[np.ndarray, "splits n"] | None]:
        """A table whose rows are what is resampled: members of one split, or several splits, their members averaged.

        Args:
            table: a row a member that is good.
            good: numbers of those members.
            part: whose adapters the columns are.

        Returns:
            The table, [*arms, rows, n], and which cells count; None where all do.
        """
        if len(self.splits) == 1:
            return table, None
        of = self.split_of[list(good)]
        known = np.unique(of)
        rows = [table[..., of == number, :].mean(-2, dtype=np.float64) for number in known]
        return np.stack(rows, -2), held_out(self.splits, part)[known]


def _paired(
    first: Sequence[Evaluation], second: Sequence[Evaluation]
) -> tuple[Float[np.ndarray, "members n"], Float[np.ndarray, "members n"], list[int]] | None:
    """What is right on both sides, a row a member that trained in every arm (draws averaged), and their numbers."""
    if not all(one.runs for one in (*first, *second)):
        return None
    good, _ = good_seeds([*first, *second], refuse=False)
    if not good:
        return None
    ours, theirs = (np.mean([one.test_correct[good] for one in side], 0) for side in (first, second))
    return ours, theirs, good


def _averaged(draws: Sequence[Run]) -> Run:
    """One run in place of a seed's draws: the means of their metrics, or the first error."""
    failed = [run for run in draws if run.error is not None]
    if failed or len(draws) == 1:
        return (failed or list(draws))[0]
    metrics = {name: float(np.mean([run.metrics[name] for run in draws])) for name in draws[0].metrics}
    return replace(draws[0], metrics=metrics, seconds=sum(run.seconds for run in draws))


def measured(evaluations: Sequence[Evaluation], study: Study) -> list[Measured | None]:
    """Test accuracy of every arm; None where no member has trained."""
    found: list[Measured | None] = []
    for one in evaluations:
        good = [seed for seed, run in enumerate(one.runs) if run.error is None]
        if not good:
            found.append(None)
            continue
        correct, tested = one.test_correct[good], one.test_labels[good] >= 0
        per_seed: Float64[np.ndarray, " seeds"] = correct.sum(1) / tested.sum(1)
        rows, cells = study.by_split(correct, good, "test")
        low, high = interval(replicates(rows[None], study.test_groups, tested=cells))
        std = float(per_seed.std(ddof=1)) if len(good) > 1 else float("nan")
        mean = float(correct.mean() if len(study.splits) == 1 else per_seed.mean())
        found.append(Measured(mean, std, len(good), float(low[0]), float(high[0])))
    return found


def good_seeds(evaluations: Sequence[Evaluation], refuse: bool = True) -> tuple[list[int], list[str]]:
    """Numbers of the seeds that trained in every arm, and why the others are left out: pairs must be whole."""
    errors: dict[int, str] = {}
    for one in evaluations:
        for number, run in enumerate(one.runs):
            if run.error is not None:
                errors.setdefault(number, f"{one.arm.name}: {run.error}")
    good = [number for number in range(len(evaluations[0].runs)) if number not in errors]
    if not good and refuse:
        raise LorabenchError(f"no seed has trained on every layer. {next(iter(errors.values()))}")
    return good, list(errors.values())


def with_holm(rows: Sequence[Row], family: Callable[[Row], object] = lambda _: None) -> list[Row]:
    """Differences with `holm`: the p of their claims corrected for all of their family.

    Args:
        rows: of any families.
        family: what those of one family have in common.
    """
    families: dict[object, list[int]] = {}
    for number, row in enumerate(rows):
        families.setdefault(family(row), []).append(number)
    adjusted: dict[int, float] = {}
    for numbers in families.values():
        adjusted |= dict(zip(numbers, holm([rows[number].claimed.p for number in numbers]), strict=True))
    return [replace(row, holm=adjusted[number]) for number, row in enumerate(rows)]
