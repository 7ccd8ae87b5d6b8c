"""What is evaluated, and what comes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from lorabench.classifiers import Fitted, Problem, confusion
from lorabench.results import Run

__all__ = ["Arm", "Evaluation", "Probe"]


@dataclass(frozen=True)
class Arm:
    """Layers that stand, and what is to be learned from them.

    Attributes:
        name: what results call it.
        layers: the layers that stand.
        permuted: whether every seed learns, and is tested on, a permutation of the labels of its own.
    """

    name: str
    layers: tuple[str, ...]
    permuted: bool = False


@dataclass(frozen=True)
class Probe:
    """Something to measure on every trained member while its weights are there.

    Attributes:
        name: part of the key under which the numbers are kept; it changes whenever `measure` does.
        measure: makes of the member, the problem and the length of every unit's features a number a unit.
    """

    name: str
    measure: Callable[[Fitted, Problem, Mapping[str, int]], dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """What came of one representation in one arm.

    Attributes:
        representation: its name.
        arm: the arm.
        runs: a run a seed, without its table of confusion (`confused`).
        units: the units that stood.
        features: length of the joined feature vector.
        val: predicted class of every validation adapter, [seeds, val]; -1 where the member failed.
        test: the same of the test adapters, [seeds, test].
        test_labels: class that was to be learned of every test adapter, [seeds, test]; over several splits
            (`lorabench.evaluation.merged`) -1 where the member's split does not test it.
        val_correct: whether it is the class that was to be learned, [seeds, val].
        test_correct: the same, [seeds, test].
        probes: what the probe measured of every seed.
        error: why there are no runs, or None.
    """

    representation: str
    arm: Arm
    runs: tuple[Run, ...] = ()
    units: tuple[str, ...] = ()
    features: int = 0
    val: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))
    test: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))
    test_labels: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))
    val_correct: np.ndarray = field(default_factory=lambda: np.empty((0, 0), bool))
    test_correct: np.ndarray = field(default_factory=lambda: np.empty((0, 0), bool))
    probes: tuple[dict[str, float], ...] = ()
    error: str | None = None

    def confused(self, n_classes: int) -> list[Run]:
        """The runs with their tables of confusion, which are large where classes are many."""
        said, true = torch.from_numpy(self.test), torch.from_numpy(self.test_labels)
        tested = true >= 0  # by the split of each member
        return [
            run
            if run.error
            else replace(run, confusion=confusion(said[i][tested[i]], true[i][tested[i]], n_classes).tolist())
            for i, run in enumerate(self.runs)
        ]
