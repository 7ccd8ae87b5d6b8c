"""Autoencoders of many layers together against one Lightning fit after another: python -m tests.bench.bench_learned.

A few layers of the embedded zoo, to the end of their early stops, both ways in turns; then the whole of each
learned representation, features included.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from lorabench.conf_dir import conf_dir
from lorabench.configs import make_representation
from lorabench.representations.autoencoder import AutoEncoder
from lorabench.representations.fitting import batches, split_rows
from lorabench.representations.learned import Learned
from lorabench.training import epoch_order
from lorabench.zoo import Zoo
from lorabench.zoo.splits import split_zoo
from tests.bench.machine import describe, quiet_lightning

NAMES, LAYERS, TURNS, GOAL = ("vae", "denoising", "contrastive"), 4, 2, 3


def main(
    names: tuple[str, ...] = NAMES,
    layers: int = LAYERS,
    whole: bool = True,
    epochs: int | None = None,
    overrides: tuple[str, ...] = (),
) -> None:
    """Print times and their ratios.

    Args:
        names: representations.
        layers: how many layers are trained both ways.
        whole: whether to time all layers too.
        epochs: at most; None for what conf says.
        overrides: of the configuration, for a smaller zoo.
    """
    quiet_lightning()
    print(describe())
    options = {} if epochs is None else {"epochs": epochs}
    for name in names:
        zoo, representation = _zoo_and(name, overrides)
        known = _training_rows(zoo)
        some = known.only(list(zoo.layers)[:layers])
        times = {"together": 0.0, "one by one": 0.0}
        count = {"together": 0, "one by one": 0}
        for turn in range(TURNS):
            for way in list(times)[:: 1 if turn % 2 else -1]:
                fresh = type(representation)(**{**vars(representation), **options})
                start = time.perf_counter()
                if way == "together":
                    fresh.fit(some, torch.device("cpu"))
                    count[way] += sum(len(one.notes["history"]) for one in fresh.fitted_.values())
                else:
                    count[way] += sum(_by_lightning(fresh, some, layer) for layer in some.layers)
                times[way] += time.perf_counter() - start
        print(f"{name}: {layers} layers of the embedded zoo, {len(known)} training rows, {TURNS} turns")
        for way, seconds in times.items():
            each = 1000 * seconds / count[way]
            print(f"  {way:12s} {seconds:7.2f} s, {each:.1f} ms an epoch of a layer, {count[way]} epochs")
        print(f"  ratio        {times['one by one'] / times['together']:7.1f}  (goal: at least {GOAL})")
        if whole:
            start = time.perf_counter()
            representation.fit(known, torch.device("cpu")).transform(zoo, torch.device("cpu"))
            seconds = time.perf_counter() - start
            print(f"  all {len(zoo.layers)} layers {seconds:6.1f} s, fit and features of {len(zoo)} adapters")


def _zoo_and(name: str, overrides: tuple[str, ...]) -> tuple[Zoo, Learned]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", overrides=[f"representation={name}", *overrides])
    config.cache_dir = str(Path(config.cache_dir).expanduser())
    return instantiate(config.dataset, _convert_="all"), make_representation(config.representation)


def _training_rows(zoo: Zoo) -> Zoo:
    return zoo.rows(split_zoo(zoo.labels, target="category", seed=0, train=0.7, val=0.1, test=0.2).train)


@dataclass
class Rows:
    """Batches of standardised weights as the stack takes them."""

    x: Tensor
    rows: Tensor
    batch_size: int
    seed: int | None = None
    epoch: int = 0
    batch_sampler: None = None

    @property
    def sampler(self) -> "Rows":
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(batches(len(self.rows), self.batch_size))

    def __iter__(self) -> Iterator[Tensor]:
        order = self.rows if self.seed is None else self.rows[epoch_order(self.seed, self.epoch, len(self.rows))]
        for part in batches(len(order), self.batch_size):
            yield self.x[order[part]]


def fit_by_lightning(module: AutoEncoder, x: Tensor, learned: Learned) -> int:
    """Train as `fit_together` does, by a `pl.Trainer`; the number of epochs."""
    train, val = split_rows(module.seed, len(x), learned.val_share)
    with tempfile.TemporaryDirectory() as scratch:
        best = ModelCheckpoint(scratch, filename="best", monitor="val_loss")
        trainer = pl.Trainer(
            max_epochs=learned.epochs,
            callbacks=[best, EarlyStopping("val_loss", patience=learned.patience)],
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, Rows(x, train, learned.batch_size, module.seed), Rows(x, val, len(val)))
        module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    return trainer.current_epoch


def _by_lightning(learned: Learned, zoo: Zoo, layer: str) -> int:
    module = learned.new_module(zoo, layer)
    raw = torch.from_numpy(zoo.read(layer).copy()).flatten(1)
    module.calibrate(raw)
    return fit_by_lightning(module, module.standardised(raw), learned)


if __name__ == "__main__":
    main()
