"""Whether a zoo can measure anything: how well its pictures or texts, its weights and its recipe tell the category."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from lorabench.evaluation.chance import chance
from lorabench.evaluation.complexity import RankComplexity, rank_complexity
from lorabench.representations.delta_pca import DeltaPCA
from lorabench.training import standardised
from lorabench.zoo import Zoo
from lorabench.zoo.splits import Split, split_zoo

__all__ = ["CLASSIFIERS", "Reading", "Soundness", "judge", "measure"]

CLASSIFIERS = ("nearest", "svm", "mlp")
"""Nearest neighbour, support vectors (Gaussian kernel, C = 10), and one hidden layer of 512."""

_BEST, _MLP, _GAP = 90.0, 86.0, 12.0
_DEVIATIONS = 3.0
_EPOCHS = 30


@dataclass(frozen=True)
class Reading:
    """How well one set of features tells the category.

    Attributes:
        features: `pictures` or `texts` (the zoo's ceiling), `delta_pca`, `flat`, `lengths` (the norm of `flat`, one a
            layer) or `recipe`.
        accuracy: classifier -> test accuracy in %, mean over the splits.
    """

    features: str
    accuracy: Mapping[str, float]

    @property
    def best(self) -> float:
        """The highest of its accuracies, in %."""
        return max(self.accuracy.values())


@dataclass(frozen=True)
class Soundness:
    """What was read of a zoo, and what is wrong with it.

    Attributes:
        dataset: the zoo's name.
        adapters: N.
        categories: number of categories.
        splits: over how many splits accuracies are means.
        chance: test accuracy in % of naming the largest category always.
        at_chance: in %, the most that reading nothing reaches: three standard errors above chance.
        readings: one a set of features that the zoo has.
        complexity: how effective ranks go with the pictures' entropy; None without pictures.
        faults: what makes the zoo unsound, a sentence each.
        unknown: what could not be judged, a sentence each.
    """

    dataset: str
    adapters: int
    categories: int
    splits: int
    chance: float
    at_chance: float
    readings: tuple[Reading, ...]
    complexity: RankComplexity | None = None
    faults: tuple[str, ...] = field(default=())
    unknown: tuple[str, ...] = field(default=())

    @property
    def sound(self) -> bool:
        """Whether all could be judged and nothing is wrong."""
        return not self.faults and not self.unknown


def measure(zoo: Zoo, splits: int = 3) -> Soundness:
    """Read a zoo's pictures, ΔW, factors and recipe by three classifiers of scikit-learn.

    Each split is the benchmark's own (70/10/20, stratified, disjoint in groups) at the seeds 0, 1, ...; the
    validation rows are left aside, since nothing is chosen.

    Args:
        zoo: whose categories are read.
        splits: how many.

    Raises:
        LorabenchError: a category is too small for a split.
    """
    category = zoo.labels.category
    accuracy: dict[str, dict[str, list[float]]] = {}
    levels, tested = [], 0
    for seed in range(splits):
        split = split_zoo(zoo.labels, seed=seed)
        levels.append(100 * chance(category, split))
        tested = len(split.test)
        for name, features in _features(zoo, split).items():
            for classifier, right in _read(features, category, split, seed).items():
                accuracy.setdefault(name, {}).setdefault(classifier, []).append(right)
    level = float(np.mean(levels))
    means = {name: {key: float(np.mean(values)) for key, values in read.items()} for name, read in accuracy.items()}
    return judge(
        Soundness(
            dataset=zoo.name,
            adapters=len(zoo),
            categories=len(np.unique(category)),
            splits=splits,
            chance=level,
            at_chance=level + _DEVIATIONS * math.sqrt(level * (100 - level) / tested),
            readings=tuple(Reading(name, read) for name, read in means.items()),
            complexity=rank_complexity(zoo),
        ),
        shared_start=_shared_start(zoo),
    )


def judge(found: Soundness, shared_start: bool | None) -> Soundness:
    """The same readings with what is wrong and what is unknown.

    A zoo is sound when its pictures or texts are read to 90 % by the best classifier and to 86 by the MLP, `delta_pca`
    is within 12 points of them by both, the recipe is at chance, and so is `flat` by the MLP where each adapter has a
    start of its own. Distances and kernels read of `flat` how long its parts are, which no start hides: `lengths`
    says how much that alone tells, and is no fault.

    Args:
        found: readings.
        shared_start: whether all adapters start from the same factors; None where that is not known.
    """
    read = {reading.features: reading for reading in found.readings}
    faults, unknown = [], []
    shown = read.get("pictures") or read.get("texts")
    if shown is not None:
        faults += _headroom(shown, read["delta_pca"])
    else:
        unknown.append("what the adapters were trained on is not known, so neither is the most that can be read")
    if shared_start is None:
        unknown.append("whether the adapters share their start is not known")
    blind = {"recipe": read["recipe"].best} if "recipe" in read else {}
    if shared_start is False:
        blind["flat"] = read["flat"].accuracy["mlp"]
    faults += [
        f"{name} reads {right:.1f} %, where chance ends at {found.at_chance:.1f}"
        for name, right in blind.items()
        if right > found.at_chance
    ]
    facts = {key: value for key, value in vars(found).items() if key not in ("faults", "unknown")}
    return Soundness(**facts, faults=tuple(faults), unknown=tuple(unknown))


def _headroom(shown: Reading, weights: Reading) -> list[str]:
    pairs = [
        ("the best classifier", _BEST, shown.best, weights.best),
        ("the MLP", _MLP, shown.accuracy["mlp"], weights.accuracy["mlp"]),
    ]
    what = shown.features
    faults = [f"{what} read {top:.1f} % by {by}, {need:.0f} are needed" for by, need, top, _ in pairs if top < need]
    return faults + [
        f"delta_pca reads {read:.1f} % by {by}, {top - read:.1f} points below the {what}, {_GAP:.0f} are allowed"
        for by, _, top, read in pairs
        if top - read > _GAP
    ]


def _shared_start(zoo: Zoo) -> bool | None:
    start = zoo.labels.recipe.get("shared_start")
    return None if start is None else bool(start.all())


def _features(zoo: Zoo, split: Split) -> dict[str, Float[np.ndarray, "n _f"]]:
    """All that is read, centred and scaled by the training rows; a ceiling has one scale, all else one a feature."""
    found = {}
    if zoo.ceiling is not None:
        pixels = zoo.ceiling.read(0, len(zoo)).reshape(len(zoo), -1)
        pixels = pixels - pixels[split.train].mean(0)
        found[zoo.shown] = pixels / max(pixels[split.train].std(), 1e-7)
    cpu = torch.device("cpu")
    if zoo.modules:
        scores = DeltaPCA().fit(zoo.rows(split.train), cpu).transform(zoo, cpu)
        found["delta_pca"] = _scaled(np.concatenate([values.numpy() for values in scores.values()], 1), split)
    layers = [zoo.read(one).reshape(len(zoo), -1) for one in zoo.layers]
    found["flat"] = np.concatenate([_scaled(layer, split) for layer in layers], 1)
    found["lengths"] = _scaled(np.stack([np.linalg.norm(layer, axis=1) for layer in layers], 1), split)
    recipe = zoo.recipe()
    if recipe:
        found["recipe"] = _scaled(np.stack(list(recipe.values()), 1), split)
    return found


def _scaled(values: Float[np.ndarray, "n f"], split: Split) -> Float[np.ndarray, "n f"]:
    wide = torch.from_numpy(values.astype(np.float64))  # a copy: a memory map cannot be written to
    return standardised(wide, wide[torch.from_numpy(split.train)]).numpy().astype(values.dtype)


def _read(features: Float[np.ndarray, "n f"], category: np.ndarray, split: Split, seed: int) -> dict[str, float]:
    """Test accuracy in % of every classifier."""
    models: tuple[Any, ...] = (
        KNeighborsClassifier(1),
        SVC(C=10),
        MLPClassifier((512,), alpha=1e-3, max_iter=_EPOCHS, random_state=seed),
    )
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it stops after a fixed number of epochs
        for name, model in zip(CLASSIFIERS, models, strict=True):
            model.fit(features[split.train], category[split.train])
            found[name] = 100 * float(model.score(features[split.test], category[split.test]))
    return found
