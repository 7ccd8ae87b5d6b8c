"""Ten members of the MLP as one stack against ten fits of `pl.Trainer`: python -m tests.bench.bench_members."""

import functools
import logging
import statistics
import warnings

import torch

from lorabench.classifiers.mlp import MLP
from lorabench.data import FeatureData
from lorabench.engines import Lightning, Stacked
from tests.bench.machine import describe, interleaved, ratio

MEMBERS, EPOCHS, ADAPTERS, CLASSES = 10, 10, 972, 10


def main() -> None:
    """Print both times and their ratio."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    print(describe())
    for features, what in (
        (7, "stats of one layer"),
        (224, "stats of the embedded zoo"),
        (2144, "ensemble of the embedded zoo"),
    ):
        data = _data(features)
        factory = functools.partial(MLP, hidden=[512, 512, 512], dropout=0.3, max_epochs=EPOCHS)
        works = {
            "one by one": lambda data=data, factory=factory: Lightning("cpu").fit(factory, data, range(MEMBERS)),
            "stacked": lambda data=data, factory=factory: Stacked("cpu").fit(factory, data, range(MEMBERS)),
        }
        times = interleaved(works, 3, warm_up=False)
        print(f"{MEMBERS} members, {EPOCHS} epochs of {len(data.train)} rows, {features} features ({what})")
        for name, seconds in times.items():
            each = statistics.median(seconds) / MEMBERS / EPOCHS
            print(f"  {name:12s} {statistics.median(seconds):7.2f} s, {each:.4f} s a member and epoch")
        print(f"  ratio        {ratio(times['one by one'], times['stacked']):7.1f}  (goal: at least 4)")


def _data(features: int) -> FeatureData:
    generator = torch.Generator().manual_seed(0)
    values = {"all": torch.randn(ADAPTERS, features, generator=generator)}
    rows = torch.randperm(ADAPTERS, generator=generator)
    labels = torch.arange(ADAPTERS) % CLASSES
    split = rows[:680], rows[680:777], rows[777:]
    return FeatureData(values, labels, *split, CLASSES, torch.device("cpu"))


if __name__ == "__main__":
    main()
