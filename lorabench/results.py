"""The result of a run: its schema, and how it is written and read."""

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorabench.findings import Finding, Number, read_finding, validated, written_finding
from lorabench.storage import replace_file
from lorabench.text import to_json

__all__ = [
    "METRICS",
    "NUMBER_METRICS",
    "PUBLISHED",
    "SCHEMA",
    "Numbers",
    "Result",
    "Run",
    "Statistic",
    "Summary",
    "Variance",
    "environment",
    "read_result",
    "summarise",
]

SCHEMA = 5
_INDENTED_CLASSES = 50  # beyond it, a line a confusion count would be millions of lines
PUBLISHED = ("protocol", "top_k_ablated", "num_runs", "top_layers", "ablation_results", "baseline_results")
"""Keys of `results.json` with `published_keys=true`: all of the origin's but `dataset`, which is lorabench's own."""
NUMBER_METRICS = ("test_mae", "test_r2")
"""Of a number that is predicted in ordered classes, beside `METRICS`."""
METRICS = ("train_accuracy", "val_accuracy", "test_accuracy", "test_macro_f1", "test_auroc")
_OPEN: dict[str, dict[str, type]] = {
    "dataset": {"name": str, "fingerprint": str, "adapters": int, "layers": int},
    "split": {"train": int, "val": int, "test": int, "by_source": bool, "splits": int},
    "config": {"seed": int, **dict.fromkeys(("dataset", "split", "classifier", "ablation", "representations"), dict)},
}
"""What is read of the parts of a result that have no class of their own."""
_NEEDED = {
    "dataset": ("name", "adapters", "layers"),
    "split": ("train", "val", "test", "by_source"),
    "config": ("seed",),
}


@dataclass(frozen=True)
class Run:
    """One member: a representation, an ablation and a seed.

    Attributes:
        representation: its name.
        ablation: the ablation's name.
        seed: the member's seed.
        best_epoch: epoch with the lowest validation loss, or the highest accuracy with `stop_on=accuracy`, from 0.
        epochs: epochs trained.
        metrics: `METRICS`, val_macro_f1 and, of a number, `NUMBER_METRICS` -> value; NaN where a metric is undefined.
            Empty where the member failed.
        confusion: test counts of (true, predicted) class.
        history: a row an epoch: train_loss, val_loss, val_accuracy, learning_rate.
        error: why it failed, or None.
        split: number of the split that it is trained and tested on, from 0.
        seconds: wall time since the member before it was done; all members' together are the training's.
        parameters: numbers in its weights, or in what it keeps of the training adapters.
        settings: what of the classifier's settings was chosen from its grid, or the `candidate` of scikit-learn's.
    """

    representation: str
    ablation: str
    seed: int
    best_epoch: int = -1
    epochs: int = 0
    metrics: dict[str, Number] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)
    history: list[dict[str, Number]] = field(default_factory=list)
    error: str | None = None
    split: int = 0
    seconds: float = field(default=0.0, compare=False)
    parameters: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation over n runs; std is NaN for one run."""

    mean: Number
    std: Number
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistic":
        """Over the defined values."""
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return cls(math.nan, math.nan, 0)
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else math.nan, len(known))


@dataclass(frozen=True)
class Variance:
    """Variance components of test accuracy: of another split, and of another member of the same split.

    Attributes:
        split: by the method of moments, not below 0; NaN for one split, or where a split has one member (the two cannot
            be told apart: it is all in `member`).
        member: pooled over splits; NaN for one member.
    """

    split: Number
    member: Number

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Variance":
        """From members that ended well."""
        known: dict[int, list[float]] = {}
        for run in runs:
            known.setdefault(run.split, []).append(run.metrics["test_accuracy"])
        return cls.between(list(known.values()))

    @classmethod
    def between(cls, known: Sequence[Sequence[float]]) -> "Variance":
        """From the members' accuracies of every split, as many a split (Searle, Casella & McCulloch 1992, ch. 3).

        member = mean within-split variance; split = variance of the splits' means - member / members a split.
        """
        several = [values for values in known if len(values) > 1]
        if not several:
            together = [value for values in known for value in values]
            return cls(math.nan, statistics.variance(together) if len(together) > 1 else math.nan)
        freedom = sum(len(values) - 1 for values in several)
        member = sum((len(values) - 1) * statistics.variance(values) for values in several) / freedom
        if len(known) == 1:
            return cls(math.nan, member)
        means = [statistics.fmean(values) for values in known]
        each = statistics.harmonic_mean([len(values) for values in known])
        return cls(max(0.0, statistics.variance(means) - member / each), member)


@dataclass(frozen=True)
class Summary:
    """A row of the table: one representation under one ablation, over the members.

    Attributes:
        representation: its name.
        ablation: the ablation's name.
        classifier: the classifier's name.
        units: number of units (layers, modules or 1).
        features: length of the joined feature vector.
        gauge_invariant: whether the features stay under (up·G, G⁻¹·down).
        train_accuracy, val_accuracy, test_accuracy, test_macro_f1, test_auroc: over the runs that ended well.
        failed: errors of the runs that did not; a failed run is in no mean.
        variance: of test accuracy, by split and by member.
        seconds: wall time that the training of all members took, of however many configurations.
        parameters: numbers in one member's weights, a mean.
        tries: configurations of the classifier that were tried for each.
        test_mae, test_r2: of a number, in `Result.numbers.unit`; None where classes have no order.
    """

    representation: str
    ablation: str
    classifier: str
    units: int
    features: int
    gauge_invariant: bool | None
    train_accuracy: Statistic
    val_accuracy: Statistic
    test_accuracy: Statistic
    test_macro_f1: Statistic
    test_auroc: Statistic
    failed: list[str] = field(default_factory=list)
    variance: Variance = Variance(math.nan, math.nan)
    seconds: float = field(default=0.0, compare=False)
    parameters: float = 0.0
    tries: int = 1
    test_mae: Statistic | None = None
    test_r2: Statistic | None = None


@dataclass(frozen=True)
class Numbers:
    """The numbers that ordered classes stand for.

    Attributes:
        unit: what errors are measured in: the target's name, or "log2" of it.
        values: of the classes, in that unit, ascending.
        constant_mae: test mean absolute error of the training median, a mean over splits.
        constant_r2: test R² of the training mean, a mean over splits.
    """

    unit: str
    values: list[Number]
    constant_mae: Number
    constant_r2: Number


@dataclass(frozen=True)
class Result:
    """Everything that one run of lorabench found; `results.json` is this.

    Attributes:
        dataset: name, config, fingerprint, adapters, layers, modules, groups and categories with their counts.
        split: numbers of train, val and test rows (of the first split), whether the source fixed them, and the
            number of splits.
        target: "category", "leaf", or a column of the recipe.
        classes: names of the classes, in the order of the confusion matrices.
        chance: test accuracy of always naming the most frequent training class, a mean over splits.
        config: the whole resolved configuration.
        runs: one entry a member.
        summary: one row a representation and ablation.
        seconds: wall time of every phase.
        environment: versions, machine and git commit.
        ablation: what the ablation phase found (docs/ablation.md).
        learned: how the training of every learned representation went, by unit, and a map of its latent space
            (`lorabench.evaluation.latent`).
        published: what stands under the published keys, beside all these, with `published_keys=true`
            (`lorabench.published`).
        numbers: what the classes of a number stand for; None where classes have no order.
        schema: version of this layout.
    """

    dataset: dict[str, Any]
    split: dict[str, Any]
    target: str
    classes: list[str]
    chance: float
    config: dict[str, Any]
    runs: list[Run]
    summary: list[Summary]
    seconds: dict[str, float]
    environment: dict[str, Any]
    ablation: Finding
    learned: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    numbers: Numbers | None = None
    schema: int = SCHEMA

    def write(self, path: Path) -> None:
        """Write as JSON; NaN and infinity become null."""
        data = {**asdict(self), "ablation": written_finding(self.ablation)}
        published = data.pop("published")
        replace_file(path, to_json({**data, **published}, 1 if len(self.classes) <= _INDENTED_CLASSES else None))


def summarise(
    runs: Sequence[Run], classifier: str, units: int, features: int, gauge_invariant: bool | None, tries: int = 1
) -> Summary:
    """The row of one representation and ablation from its runs."""
    good = [run for run in runs if run.error is None]
    numbers = [name for name in NUMBER_METRICS if any(name in run.metrics for run in good)]
    return Summary(
        representation=runs[0].representation,
        ablation=runs[0].ablation,
        classifier=classifier,
        units=units,
        features=features,
        gauge_invariant=gauge_invariant,
        failed=[run.error for run in runs if run.error is not None],
        variance=Variance.of(good),
        seconds=sum(run.seconds for run in runs),
        parameters=statistics.fmean([run.parameters for run in good]) if good else 0.0,
        tries=tries,
        **{name: Statistic.of([run.metrics[name] for run in good]) for name in METRICS},
        **{name: Statistic.of([run.metrics[name] for run in good]) for name in numbers},
    )


def read_result(path: Path) -> Result:
    """The result in a `results.json`; null metrics come back as NaN.

    What reports take from it later is looked at here, so that whoever gets a result can use it.

    Raises:
        ValueError: the file has another schema version, or is damaged.
    """
    try:
        data = json.loads(path.read_text())
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema == SCHEMA:
            data["published"] = {key: data.pop(key) for key in PUBLISHED if key in data}
            found = validated(Result, {**data, "ablation": read_finding(data.get("ablation"))})
            _check(found)
            return found
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, {error}") from error
    raise ValueError(f"{path}: schema {schema}, this version of lorabench reads {SCHEMA}")


def _check(result: Result) -> None:
    """Look at what the fields' types leave open.

    Raises:
        ValueError: what is wrong.
    """
    for part, options in _OPEN.items():
        known = getattr(result, part)
        for name, kind in options.items():
            if (name in known or name in _NEEDED[part]) and type(known.get(name)) is not kind:
                raise ValueError(f"{part}.{name}: {kind.__name__} is needed, and {known.get(name)!r} came")
    few = [part for part in ("train", "test") if result.split[part] < 1]
    if few:
        raise ValueError(f"split.{few[0]}: no adapter")
    if not any(row.ablation == "none" for row in result.summary):
        raise ValueError("summary: no row with all layers")
    options = result.config.get("representations", {})
    wrong = [name for name, own in options.items() if not isinstance(own, dict)]
    if wrong:
        raise ValueError(f"config.representations.{wrong[0]}: its options are needed")
    own_classifier = any("classifier" in own for own in options.values())
    if own_classifier and "." not in str(result.config.get("classifier", {}).get("_target_")):
        raise ValueError("config.classifier: no _target_")
    for run in result.runs:
        if run.error is None:
            _check_member(run, len(result.classes))


def _check_member(run: Run, classes: int) -> None:
    """Look at a member that ended well: it has every metric, and a count of every two classes."""
    said = f"runs: {run.representation} {run.ablation} seed {run.seed}"
    missing = [name for name in METRICS if name not in run.metrics]
    if missing or not math.isfinite(run.metrics["test_accuracy"]):
        raise ValueError(f"{said} has no {(missing or ['test_accuracy'])[0]}")
    if [len(row) for row in run.confusion] != [classes] * classes:
        raise ValueError(f"{said} has no count of every two of {classes} classes")


def environment() -> dict[str, Any]:
    """Versions of what the numbers depend on, the machine, and the git commit of a checkout."""
    packages = (
        "lorabench", "torch", "pytorch-lightning", "torchmetrics", "numpy", "hydra-core", "omegaconf",
        "datasets", "safetensors", "wandb", "matplotlib",
    )  # fmt: skip
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from, with "-dirty" behind it where files differ."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],  # noqa: S607
            cwd=folder, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
