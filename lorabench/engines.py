"""How members are trained: all as one stack, or one after another by `pl.Trainer`; the numbers are the same."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor

from lorabench.classifiers import ClassifierFactory, Fitted, Member, fit_members
from lorabench.classifiers.members import OnEpoch, divergence
from lorabench.data import FeatureData
from lorabench.errors import LorabenchError

__all__ = ["Engine", "Lightning", "Stacked", "resolve_device"]


def resolve_device(name: str) -> torch.device:
    """The device of a config: "auto" takes a CUDA device where there is one.

    Raises:
        LorabenchError: no such kind of device, or none here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise LorabenchError("trainer.device=cuda: torch finds no CUDA device here; take trainer.device=cpu or auto")
    if name not in ("cpu", "cuda"):
        raise LorabenchError(f"trainer.device={name}: allowed are auto, cpu and cuda")
    return torch.device(name)


@runtime_checkable
class Engine(Protocol):
    """Trains the members of seeds on the joined features of a data module."""

    device: str

    def fit(
        self,
        factory: ClassifierFactory,
        data: FeatureData,
        seeds: Sequence[int],
        on_epoch: OnEpoch | None = None,
    ) -> list[Fitted]:
        """One `Fitted` a seed."""
        ...


@dataclass
class Stacked:
    """All members at once (`fit_members`); the default."""

    device: str = "auto"

    def fit(
        self,
        factory: ClassifierFactory,
        data: FeatureData,
        seeds: Sequence[int],
        on_epoch: OnEpoch | None = None,
    ) -> list[Fitted]:
        """Train the members as one stack."""
        return fit_members(
            factory,
            data.inputs[None],
            data.labels,
            data.train,
            data.val,
            [Member(seed) for seed in seeds],
            data.n_classes,
            on_epoch,
        )


class _History(Callback):
    """Collects one row an epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._rate = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del pl_module
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del pl_module
        found: dict[str, Tensor] = trainer.callback_metrics
        names = ("train_loss", "val_loss", "val_accuracy")
        self.rows.append({**{name: float(found[name]) for name in names}, "learning_rate": self._rate})


@dataclass
class Lightning:
    """One `pl.Trainer` a member, one after another."""

    device: str = "auto"

    def fit(
        self,
        factory: ClassifierFactory,
        data: FeatureData,
        seeds: Sequence[int],
        on_epoch: OnEpoch | None = None,
    ) -> list[Fitted]:
        """Train the members one by one."""
        results = []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as scratch:
                results.append(self._fit_one(factory, data, seed, Path(scratch)))
            if on_epoch is not None:
                on_epoch(len(results[-1].history) - 1, 1)
        return results

    def _fit_one(self, factory: ClassifierFactory, data: FeatureData, seed: int, folder: Path) -> Fitted:
        model = factory(in_features=data.inputs.shape[1], n_classes=data.n_classes, seed=seed)
        model = model.to(data.inputs.dtype)
        best = ModelCheckpoint(folder, filename="best", monitor="val_loss")
        stop = EarlyStopping("val_loss", patience=model.patience)
        history = _History()
        trainer = _trainer(data.inputs.device, model.max_epochs, [best, stop, history])
        trainer.fit(model, data.train_batches(seed), data.val_dataloader())
        failed = divergence(seed, history.rows)
        if failed is not None:
            return Fitted(Member(seed), history=history.rows, error=failed)
        model.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
        model = model.to(data.inputs.device).eval()
        with torch.no_grad():
            logits = model(data.inputs).cpu()
        losses = [row["val_loss"] for row in history.rows]
        state: dict[str, Any] = {name: value.cpu() for name, value in model.network.state_dict().items()}
        return Fitted(Member(seed), state, logits, losses.index(min(losses)), history.rows)


def _trainer(device: torch.device, max_epochs: int, callbacks: list[Callback]) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=max_epochs,
        callbacks=callbacks,
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
