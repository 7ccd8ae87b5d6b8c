"""An evaluator and a study over a zoo in memory, and a whole run in this process."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from lorabench import pipeline
from lorabench.ablation import Study
from lorabench.classifiers import ClassifierFactory, Member, Problem
from lorabench.classifiers.mlp import MLP
from lorabench.conf_dir import conf_dir
from lorabench.engines import Engine, Stacked
from lorabench.errors import LorabenchError
from lorabench.evaluation import Evaluator
from lorabench.representations import Representation
from lorabench.representations.stats import Stats
from lorabench.results import Result
from lorabench.zoo import Zoo
from lorabench.zoo.splits import split_zoo

SHARES = {"train": 0.5, "val": 0.25, "test": 0.25}
SMALL = functools.partial(MLP, hidden=[32], dropout=0.0, max_epochs=12, learning_rate=2e-2, batch_size=80)


class Recorded(Stacked):
    """The stacked engine, which remembers what it was given."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.calls: list[tuple[Problem, list[Member]]] = []

    def fit(
        self, factory: ClassifierFactory, problem: Problem, members: Sequence[Member], finish: Any, on_epoch: Any = None
    ) -> list[Any]:
        self.calls.append((problem, list(members)))
        return super().fit(factory, problem, members, finish, on_epoch)


def evaluator_of(zoo: Zoo, cache_dir: Path, seeds: int = 2, engine: Engine | None = None, **knobs: Any) -> Evaluator:
    """All that an evaluator needs for a zoo in memory; `knobs` are further attributes."""
    knobs = {"factory": SMALL, "split": split_zoo(zoo.labels, **SHARES), "resume": True, **knobs}
    return Evaluator(
        zoo=zoo,
        labels=zoo.labels.category,
        n_classes=len(zoo.labels.category_names),
        engine=engine or Stacked("cpu"),
        device=torch.device("cpu"),
        seeds=tuple(range(seeds)),
        cache_dir=cache_dir,
        **knobs,
    )


def study_of(
    evaluator: Evaluator,
    chosen: Mapping[str, Callable[[], Representation]] | None = None,
    baseline: tuple[str, Callable[[], Representation]] = ("stats", Stats),
) -> Study:
    """A study of `chosen`, or of the baseline itself."""
    return Study(evaluator, "mlp", evaluator.zoo.labels.category_names, chosen or dict([baseline]), baseline)


def several_splits(
    zoo: Zoo, cache_dir: Path, chosen: Mapping[str, Callable[[], Representation]], seeds: Sequence[int] = (1, 2)
) -> Study:
    """A study of one member a split: the default split, and one more for each of `seeds`."""
    first = evaluator_of(zoo, cache_dir, seeds=1)
    others = [replace(first, split=split_zoo(zoo.labels, **SHARES, seed=seed), seeds=(seed,)) for seed in seeds]
    return replace(study_of(first, chosen), others=others)


class Broken(Stats):
    """Cannot be made."""

    def features(self, *_: Any) -> Any:
        raise LorabenchError("it is broken")


def run(folder: Path, *overrides: str) -> Result:
    """`python -m lorabench` with these overrides, in this process, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", list(overrides), return_hydra_config=True)
        names = {group: choice for group, choice in cfg.hydra.runtime.choices.items() if choice is not None}
        with open_dict(cfg):
            del cfg["hydra"]
        return pipeline.run(cfg, folder, names)
