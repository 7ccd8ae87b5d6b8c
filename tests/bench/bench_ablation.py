"""Phase 1 of the embedded zoo, stacked and one Lightning fit after another: python -m tests.bench.bench_ablation.

Every layer alone, three seeds each, to the end of early stopping. Both ways take turns, block of layers by block, so
that drift hits both; a block is smaller than the phase, which costs the stack a little and Lightning nothing.
"""

import functools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lorabench.conf_dir import conf_dir
from lorabench.engines import Engine, Lightning, Stacked
from lorabench.evaluation import Evaluation
from lorabench.representations.stats import Stats
from tests.bench.machine import describe, quiet_lightning
from tests.bench.measured import Measuring
from tests.cached import cached_features

RUNS, BLOCKS, GOAL = 3, 4, 5


def main(layers: int | None = None, runs: int = RUNS, blocks: int = BLOCKS) -> None:
    """Print both times and their ratio.

    Args:
        layers: of the zoo's first so many layers; None: of all.
        runs: seeds a layer.
        blocks: turns.
    """
    quiet_lightning()
    print(describe())
    engines: dict[str, Engine] = {"stacked": Stacked("cpu"), "one by one": Lightning("cpu")}
    evaluators = _evaluators(engines, runs)
    chosen = list(evaluators["stacked"].everything[:layers])
    times = dict.fromkeys(engines, 0.0)
    found: dict[str, list[Evaluation]] = {name: [] for name in engines}
    for number, block in enumerate(np.array_split(np.array(chosen), min(blocks, len(chosen)))):
        turn = list(engines) if number % 2 == 0 else list(reversed(engines))
        for name in turn:
            arms = [evaluators[name].alone(str(layer)) for layer in block]
            start = time.perf_counter()
            found[name] += evaluators[name].evaluate("stats", Stats(), arms)
            times[name] += time.perf_counter() - start
    members = len(chosen) * runs
    print(f"phase 1: {len(chosen)} layers x {runs} seeds = {members} members, stats of one layer each")
    for name, seconds in times.items():
        epochs = sum(run.epochs for one in found[name] for run in one.runs)
        print(f"  {name:12s} {seconds:7.1f} s, {seconds / members:.3f} s a member, {epochs} epochs of members")
    print(f"  ratio        {times['one by one'] / times['stacked']:7.1f}  (goal: at least {GOAL})")
    print(f"  {_agreement(found['stacked'], found['one by one'])}")


def _evaluators(engines: dict[str, Engine], runs: int) -> dict[str, Measuring]:
    """One an engine, on the embedded zoo as conf has it, with its features in the cache."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config")
    cache = Path(config.cache_dir).expanduser()
    config.cache_dir = str(cache)
    zoo, factory = (instantiate(part, _convert_="all") for part in (config.dataset, config.classifier))
    cpu = torch.device("cpu")
    of = functools.partial(Measuring.of, zoo, factory, device=cpu, runs=runs, cache_dir=cache)
    found = {name: of(engine=engine) for name, engine in engines.items()}
    cached_features(Stats(), zoo, found["stacked"].split.train, cache, cpu)
    return found


def _agreement(ours: Sequence[Evaluation], theirs: Sequence[Evaluation]) -> str:
    """How many members came out the same, and how many single predictions did not."""
    runs = [(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one.runs, other.runs, strict=True)]
    epochs = sum(a.best_epoch == b.best_epoch for a, b in runs)
    differ = np.concatenate([one.test != other.test for one, other in zip(ours, theirs, strict=True)])
    return (
        f"same: best epoch of {epochs} of {len(runs)} members, all test predictions of {int((~differ.any(1)).sum())}; "
        f"{int(differ.sum())} of {differ.size} predictions differ"
    )


if __name__ == "__main__":
    main()
