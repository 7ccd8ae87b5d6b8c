"""Ten members of the MLP as one stack against ten fits of `pl.Trainer`: python -m tests.bench.bench_members."""

import functools
import statistics
from collections.abc import Callable

import torch

from lorabench.classifiers import Member, Problem, as_it_is
from lorabench.classifiers.mlp import MLP
from lorabench.engines import Engine, Lightning, Stacked
from tests.bench.machine import describe, interleaved, quiet_lightning, ratio

MEMBERS, EPOCHS, ADAPTERS, CLASSES = 10, 10, 972, 10


def main(epochs: int = EPOCHS) -> None:
    """Print both times and their ratio."""
    quiet_lightning()
    print(describe())
    factory = functools.partial(MLP, hidden=[512, 512, 512], dropout=0.3, max_epochs=epochs)
    members = [Member(seed) for seed in range(MEMBERS)]
    for features, what in (
        (7, "stats of one layer"),
        (224, "stats of the embedded zoo"),
        (2144, "ensemble of the embedded zoo"),
    ):
        problem = _problem(features)

        def fit(engine: Engine, problem: Problem = problem) -> None:
            engine.fit(factory, problem, members, as_it_is)

        works: dict[str, Callable[[], object]] = {
            "one by one": functools.partial(fit, Lightning("cpu")),
            "stacked": functools.partial(fit, Stacked("cpu")),
        }
        times = interleaved(works, 3, warm_up=False)
        print(f"{MEMBERS} members, {epochs} epochs of {len(problem.train)} rows, {features} features ({what})")
        for name, seconds in times.items():
            each = statistics.median(seconds) / MEMBERS / epochs
            print(f"  {name:12s} {statistics.median(seconds):7.2f} s, {each:.4f} s a member and epoch")
        print(f"  ratio        {ratio(times['one by one'], times['stacked']):7.1f}  (goal: at least 4)")


def _problem(features: int) -> Problem:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(ADAPTERS, features, generator=generator)
    rows = torch.randperm(ADAPTERS, generator=generator)
    labels = (torch.arange(ADAPTERS) % CLASSES)[None]
    return Problem(inputs, labels, train=rows[:680], val=rows[680:777], n_classes=CLASSES)


if __name__ == "__main__":
    main()
