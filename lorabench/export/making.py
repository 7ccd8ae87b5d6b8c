"""A run made into a model: its data set, its representation and its members again, then calibrated."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lorabench.classifiers import Fitted, as_it_is, class_of, settings_of
from lorabench.configs import make_representation
from lorabench.data import as_taken
from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm, Evaluator, Probe
from lorabench.evaluation.chance import chance
from lorabench.jobs import RESULTS
from lorabench.pipeline import evaluators_of, fitted_folder, own_classifiers
from lorabench.predict.character import character, spans
from lorabench.predict.conformal import Held, mean_probabilities, temperature
from lorabench.predict.folder import networks_of
from lorabench.predict.model import Model, joined_features
from lorabench.predict.novelty import Novelty
from lorabench.predict.reading import ModelModule
from lorabench.report.folders import result_in
from lorabench.representations import Representation
from lorabench.representations.learned import Learned
from lorabench.results import Result
from lorabench.training import Scaling
from lorabench.zoo import Zoo

__all__ = ["calibrated", "make_model", "modules_of"]

_TARGETS = ("category", "leaf")
_CLOSE = 1e-3
_Z95 = 1.959963984540054


def make_model(run: Path, name: str) -> Model:
    """The model of a finished run: what its first split trained, trained again by the run's own settings.

    Validation adapters, which chose when to stop, choose the temperature too; test adapters, which trained and chose
    nothing, are what promises are calibrated on.

    Args:
        run: its folder.
        name: of one of its representations.

    Raises:
        LorabenchError: there is no such run or representation, its data set has changed, or one of its parts cannot
            be kept as arrays.
    """
    _check_run(run)
    result = result_in(run)
    _check(result, run, name)
    evaluators, target = evaluators_of(_as_then(result.config, run))
    options = OmegaConf.create(result.config["representations"][name])
    factory = own_classifiers({name: options}).get(name, ("", evaluators[0].factory))[1]
    evaluator = dataclasses.replace(evaluators[0], factory=factory, resume=False, device=torch.device("cpu"))
    _check_zoo(evaluator.zoo, result)
    representation = _fitted_representation(run, name, result, evaluator)
    return calibrated(evaluator, name, representation, target.names, result.target, _story(result, name))


def calibrated(
    evaluator: Evaluator,
    name: str,
    representation: Representation,
    classes: tuple[str, ...],
    target: str,
    story: dict[str, Any],
) -> Model:
    """Members of an evaluator's split, trained and calibrated.

    Args:
        evaluator: of the zoo, on the CPU; it takes no member from an earlier run.
        name: what the representation is called.
        representation: fitted on the training rows.
        classes: names of the classes.
        target: what they are.
        story: what the card says of the training.

    Raises:
        LorabenchError: the representation or the members cannot be kept as arrays.
    """
    representation.arrays()  # what cannot be kept is told before anything is trained
    _check_own(representation, evaluator)
    members = _members(name, representation, evaluator)
    seeds = [fitted.member.seed for fitted in members]
    logits = torch.stack([fitted.logits for fitted in members])
    zoo, split = evaluator.zoo, evaluator.split
    features = joined_features(representation, zoo)
    scaling = Scaling.of(features[split.train]) if representation.standardised else None
    classifier = _classifier(evaluator, features.shape[1], len(classes), [fitted.settings for fitted in members])
    inputs = as_taken(features, scaling)
    warmth = temperature(logits[:, split.val], evaluator.labels[split.val])
    groups, held_out = _groups(zoo, target, split.test, np.concatenate([split.train, split.val]))
    probabilities = mean_probabilities(logits[:, split.test], warmth)
    right = probabilities.gather(1, torch.from_numpy(evaluator.labels[split.test])[:, None])[:, 0]
    known = spans(zoo.rows(split.train))
    rows, modules = (split.train, split.val, split.test), modules_of(zoo)
    model = Model(
        target=target,
        classes=classes,
        modules=modules,
        representation=representation,
        scaling=scaling,
        classifier=classifier,
        seeds=tuple(seeds),
        networks=networks_of(classifier, modules, seeds, [fitted.state for fitted in members]),
        temperature=warmth,
        conformal=Held.of((1 - right).numpy(), groups),
        novelty=Novelty.of(known, inputs, character(zoo, known), rows, groups),
        trained_on={**story, **_measured(evaluator, probabilities, groups), "held_out_leaves": held_out},
    )
    _check_same(model, inputs, logits, name)
    return model


def _classifier(
    evaluator: Evaluator, in_features: int, n_classes: int, chosen: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Class of the members, and arguments of each: the run's, but for what was `chosen` for it."""
    kind, settings = class_of(evaluator.factory), settings_of(evaluator.factory)
    base = {option: value for option, value in settings.items() if option not in ("grid", "tries")}
    base |= {"in_features": in_features, "n_classes": n_classes}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "arguments": [{**base, **own} for own in chosen]}


def _check_run(run: Path) -> None:
    if (run / RESULTS).is_file():
        return
    below = sorted(path.parent for path in run.glob(f"*/{RESULTS}"))
    there = f"{below[0]} is one" if below else 'a command names it behind "Written to"'
    raise LorabenchError(f"{run}: not the folder of a run that is done, it has no {RESULTS}; {there}")


def _as_then(config: dict[str, Any], run: Path) -> DictConfig:
    """A run's configuration; a data set's relative path is from where the run's command was given."""
    settings, made = run / ".hydra" / "hydra.yaml", OmegaConf.create(config)
    path = OmegaConf.select(made, "dataset.path")
    if isinstance(path, str) and settings.is_file():
        made.dataset.path = str(Path(OmegaConf.load(settings).hydra.runtime.cwd) / path)
    return made


def _check(result: Result, run: Path, name: str) -> None:
    if result.target not in _TARGETS:
        raise LorabenchError(
            f"{run}: its target is {result.target}, and a model names classes: export a run with target=category or "
            "leaf"
        )
    known = list(result.config["representations"])
    if name not in known:
        raise LorabenchError(f"{run} has no representation {name!r}. It has {', '.join(known)}.")


def _check_zoo(zoo: Zoo, result: Result) -> None:
    if zoo.fingerprint != result.dataset["fingerprint"]:
        raise LorabenchError(
            f"the data set {zoo.name} is another now than when the run was made ({zoo.fingerprint[:12]}, "
            f"{result.dataset['fingerprint'][:12]} then): run it again, and export that run"
        )
    paired = {layer for module in zoo.modules for layer in (module.down, module.up)}
    lone = [layer for layer in zoo.layers if layer not in paired]
    if lone or not zoo.modules:
        raise LorabenchError(
            f"{zoo.name}: {(lone or ['nothing'])[0]} has no partner to make a pair of down and up, and a model reads "
            "whole adapters"
        )


def _fitted_representation(run: Path, name: str, result: Result, evaluator: Evaluator) -> Representation:
    options = dict(result.config["representations"][name])
    found = make_representation(OmegaConf.create(options))
    if isinstance(found, Learned):  # it took long, and the run kept it
        found = make_representation(OmegaConf.create({**options, "load_from": str(fitted_folder(run, name))}))
    return found.fit(evaluator.zoo.rows(evaluator.split.train), evaluator.device)


def _members(name: str, representation: Representation, evaluator: Evaluator) -> list[Fitted]:
    """Members of all seeds on all layers, with their weights.

    Raises:
        LorabenchError: none ended well, or one has no weights.
    """
    kept: list[Fitted] = []

    def keep(fitted: Fitted, *_: Any) -> dict[str, float]:
        kept.append(as_it_is(len(kept), fitted))
        return {}

    found = evaluator.evaluate(name, representation, [Arm("none", evaluator.everything)], Probe("export", keep))
    failed = [run.error for run in found[0].runs if run.error is not None]
    if not kept:
        raise LorabenchError(f"{name}: no member ended well. {failed[0] if failed else ''}")
    kind = class_of(evaluator.factory)
    if not all(fitted.state for fitted in kept):
        raise LorabenchError(
            f"classifier {kind.__name__.lower()} cannot be exported: what it chose has no weights of its own to keep "
            "(one of scikit-learn's has none). Run again with classifier=mlp or linear"
        )
    return sorted(kept, key=lambda fitted: fitted.member.seed)


def _check_own(representation: Representation, evaluator: Evaluator) -> None:
    """Refuse classes that `read_model` would not make.

    Raises:
        LorabenchError: the representation or the classifier is none of lorabench's.
    """
    kind = class_of(evaluator.factory)
    for path, room in (
        (str(representation.config()["class"]), "lorabench.representations."),
        (f"{kind.__module__}.{kind.__qualname__}", "lorabench.classifiers."),
    ):
        if not path.startswith(room):
            raise LorabenchError(
                f"{path} cannot be exported: a model is made of lorabench's own classes alone, and this is none of "
                f"{room[:-1]}"
            )


def _check_same(
    model: Model, inputs: Float32[Tensor, "n f"], logits: Float32[Tensor, "members n c"], name: str
) -> None:
    """A model that says something else than its members did is not written."""
    apart = float((model.logits(inputs) - logits).abs().max())
    if apart > _CLOSE * max(1.0, float(logits.abs().max())):
        raise LorabenchError(
            f"{name}: the members say something else of what the model makes of their adapters (logits differ by "
            f"{apart:.3g}), so it cannot be exported. Run again with classifier=mlp or linear"
        )


def modules_of(zoo: Zoo) -> tuple[ModelModule, ...]:
    """The modules of a zoo as a model keeps them."""
    return tuple(ModelModule(one.name, one.down, one.up, *zoo.shape_of(one.name)) for one in zoo.modules)


def _groups(
    zoo: Zoo, target: str, test: Int64[np.ndarray, " test"], others: Int64[np.ndarray, " others"]
) -> tuple[Int64[np.ndarray, " test"], bool]:
    """What is drawn as one of the test adapters: the group, else the leaf; and whether their leaves trained nothing."""
    labels = zoo.labels
    units = labels.leaf if labels.group is None else labels.group
    if target == "leaf" and labels.group is None:
        units = np.arange(len(zoo))
    return units[test], not np.isin(labels.leaf[test], labels.leaf[others]).any()


def _story(result: Result, name: str) -> dict[str, Any]:
    """What the card says of the data and the representation."""
    return {
        "dataset": result.dataset["name"],
        "fingerprint": result.dataset["fingerprint"],
        "representation": name,
    }


def _measured(
    evaluator: Evaluator, probabilities: Float64[Tensor, "test c"], groups: Int64[np.ndarray, " test"]
) -> dict[str, Any]:
    """Accuracy of the members together on the test rows, and its interval, for which adapters of one group are as one.

    The interval is Wilson's of (Σ n)² / Σ n² adapters, with n those of each group (Kish 1965): too wide where adapters
    of a group differ, and never empty.
    """
    counts, split = np.unique(groups, return_counts=True)[1], evaluator.split
    share = float((probabilities.argmax(1).numpy() == evaluator.labels[split.test]).mean())
    return {
        **{part: len(own) for part, own in vars(split).items()},
        "chance": chance(evaluator.labels, split),
        "accuracy": share,
        "interval": _wilson(share, float(counts.sum() ** 2 / (counts**2).sum())),
        "groups": len(counts),
    }


def _wilson(share: float, count: float) -> list[float]:
    """The 95 % interval of a share of so many (Wilson 1927)."""
    z = _Z95**2 / count
    middle, half = share + z / 2, math.sqrt(z * share * (1 - share) + z * z / 4)
    return [max(0.0, (middle - half) / (1 + z)), min(1.0, (middle + half) / (1 + z))]
