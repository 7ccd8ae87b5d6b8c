"""Runs with a fitted VAE each, over a zoo in files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from lorabench.ablation.none import NoneFinding
from lorabench.representations.fitted import save_fitted
from lorabench.representations.vae import VAE
from lorabench.results import Result, Run, summarise
from lorabench.zoo import Zoo, export, folder
from lorabench.zoo.splits import split_zoo
from tests.synthetic_zoo import make_zoo

SHARES = {"train": 0.5, "val": 0.25, "test": 0.25, "min_per_class": None}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Study:
    """A zoo in files, and a run with a VAE of every scope."""

    place: Path
    zoo: Zoo
    runs: dict[str, Path]

    @property
    def names(self) -> tuple[str, ...]:
        return self.zoo.labels.adapters


def result_of(zoo: Zoo, place: Path) -> Result:
    """What a run over `place`/adapters says of itself."""
    dataset = {
        "_target_": "lorabench.zoo.folder.load", "name": zoo.name, "path": str(place / "adapters"),
        "missing": "error", "cache_dir": str(place / "cache"),
    }  # fmt: skip
    runs = [Run("vae", "none", 0, error="it was fitted, and nothing was trained")]
    rows = split_zoo(zoo.labels, **SHARES)
    return Result(
        dataset={
            "name": zoo.name, "config": dataset, "fingerprint": zoo.fingerprint,
            "adapters": len(zoo.labels.adapters), "layers": len(zoo.layers),
        },
        split={**{part: len(found) for part, found in vars(rows).items()}, "by_source": False},
        target="category", classes=["c0", "c1", "c2"], chance=0.3,
        config={"dataset": dataset, "target": "category", "seed": 0, "split": SHARES},
        runs=runs, summary=[summarise(runs, "mlp", 1, 8, None)], seconds={},
        environment={}, ablation=NoneFinding("none", [], []),
    )  # fmt: skip


def fitted_on(zoo: Zoo, scope: str) -> VAE:
    """A small VAE of the zoo's training rows."""
    vae = VAE(scope=scope, epochs=4, hidden=[16, 8], latent_dim=3, batch_size=4, beta=0.01, learning_rate=1e-2)
    vae.fit(zoo.rows(split_zoo(zoo.labels, **SHARES).train), CPU)
    return vae


def make_study(place: Path, scopes: Iterable[str]) -> Study:
    """A zoo in `place`/adapters, and in `place`/SCOPE a run of every scope."""
    # kohya's files keep the scale.
    export.export(make_zoo(), place / "adapters", "kohya")
    zoo = folder.load(place / "adapters", "mine", place / "cache")
    for scope in scopes:
        vae = fitted_on(zoo, scope)
        save_fitted(vae.fitted_, vae.config(), place / scope / "fitted" / "vae")
        result_of(zoo, place).write(place / scope / "results.json")
    return Study(place, zoo, {scope: place / scope for scope in scopes})
