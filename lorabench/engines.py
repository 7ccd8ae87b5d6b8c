"""How members are trained: all as one stack, or one after another by `pl.Trainer`; the numbers are the same."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Protocol, TypeVar, runtime_checkable

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor

from lorabench.classifiers import ClassifierFactory, Fitted, Member, OnEpoch, Problem, build, fit_members
from lorabench.classifiers.choosing import as_the_class_says
from lorabench.classifiers.members import failure
from lorabench.data import FeatureData
from lorabench.errors import LorabenchError
from lorabench.options import Above, OneOf, check_arguments
from lorabench.training import lost

T = TypeVar("T")
Device = Annotated[str, OneOf(["auto", "cpu", "cuda"])]
"""Where members are trained; auto: on a CUDA device where there is one."""

__all__ = ["Device", "Engine", "Lightning", "Stacked", "resolve_device"]


def resolve_device(device: Device) -> torch.device:
    """The device of a config: "auto" takes a CUDA device where there is one.

    Raises:
        LorabenchError: no such kind of device, or none here.
    """
    check_arguments(resolve_device, {"device": device}, "trainer.")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise LorabenchError("trainer.device=cuda: torch finds no CUDA device here; take trainer.device=cpu or auto")
    return torch.device(device)


@runtime_checkable
class Engine(Protocol):
    """Trains members.

    Attributes:
        device: where.
        memory_gb: what features may take; null: all that is free.
        streams: whether members can be trained on features that are read from a file (`Streamed`).
    """

    device: Device
    memory_gb: float | int | None
    streams: ClassVar[bool]

    def fit(
        self,
        factory: ClassifierFactory,
        problem: Problem,
        members: Sequence[Member],
        finish: Callable[[int, Fitted], T],
        on_epoch: OnEpoch | None = None,
    ) -> list[T]:
        """What `finish` makes of every member, in order (`fit_members`)."""
        ...


@dataclass
class Stacked:
    """All members together (`fit_members`); the default.

    Args:
        device: auto, cpu or cuda.
        memory_gb: what a stack may take, and what features may: those that do not fit are read from a file while
            members train; null: 70 % of what is free, and all that is free.
    """

    device: Device = "auto"
    memory_gb: Annotated[float | int | None, Above(0)] = None
    streams: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_arguments(Stacked, vars(self), "trainer.")

    @as_the_class_says
    def fit(
        self,
        factory: ClassifierFactory,
        problem: Problem,
        members: Sequence[Member],
        finish: Callable[[int, Fitted], T],
        on_epoch: OnEpoch | None = None,
    ) -> list[T]:
        """Train the members together."""
        memory = None if self.memory_gb is None else int(self.memory_gb * 1e9)
        return fit_members(factory, problem, members, finish, on_epoch, memory)


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
    """One `pl.Trainer` a member, one after another.

    Args:
        device: auto, cpu or cuda.
    """

    device: Device = "auto"
    memory_gb: ClassVar[None] = None
    streams: ClassVar[bool] = False

    @as_the_class_says
    def fit(
        self,
        factory: ClassifierFactory,
        problem: Problem,
        members: Sequence[Member],
        finish: Callable[[int, Fitted], T],
        on_epoch: OnEpoch | None = None,
    ) -> list[T]:
        """Train the members one by one."""
        results = []
        for number, member in enumerate(members):
            with tempfile.TemporaryDirectory() as scratch:
                fitted = self._fit_one(factory, problem, member, Path(scratch))
            results.append(finish(number, fitted))
            if on_epoch is not None:
                on_epoch(len(fitted.history) - 1, 1)
        return results

    def _fit_one(self, factory: ClassifierFactory, problem: Problem, member: Member, folder: Path) -> Fitted:
        model = build(factory, problem, member)
        data = FeatureData(problem, member, model.batch_size)
        best = ModelCheckpoint(folder, filename="best", monitor=model.monitor, mode=model.better)
        stop = [EarlyStopping(model.monitor, patience=model.patience, mode=model.better)]
        if model.monitor != "val_loss":  # a loss that is not finite stops at once here too
            stop.append(EarlyStopping("val_loss", patience=model.max_epochs))
        history = _History()
        trainer = _trainer(problem.inputs.device, model.max_epochs, [best, *stop, history])
        trainer.fit(model, data)
        failed = failure(member.seed, lost(history.rows))
        if failed is not None:
            return Fitted(member, history=history.rows, error=failed)
        model.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
        model = model.to(problem.inputs.device).eval()
        with torch.no_grad():
            logits = model(data.inputs).cpu()
        judged = [row[model.monitor] for row in history.rows]
        first = judged.index(min(judged) if model.better == "min" else max(judged))
        return Fitted(member, model.network.state_dict(), logits, first, history.rows)


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
