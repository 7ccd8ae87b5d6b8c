"""The monitor as a callback of PyTorch Lightning."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lorabench.health.monitor import Monitor
from lorabench.health.rules.base import Thresholds

__all__ = ["FineTuneMonitor"]


class FineTuneMonitor(pl.Callback):
    """Looks at the LoRA modules every few steps of the optimiser, however many batches each takes.

    Numbers go to the trainer's loggers (`log_metrics`), and a checkpoint holds what a resumed training needs. Gradients
    are at hand under automatic optimisation, as they were clipped: Lightning sets them to zero before the next batch.

    Args:
        every: optimiser steps from one look to the next.
        adapter: see `Monitor`, as are all that follow.
        thresholds: see `Monitor`.
        rules: see `Monitor`.
        on_alert: "stop" sets `trainer.should_stop`, on all processes at once.
        out: see `Monitor`.
        base: see `Monitor`.

    Attributes:
        monitor: that does the work.

    Raises:
        LorabenchError: an argument is none of these.
    """

    def __init__(
        self,
        every: int = 10,
        adapter: str | None = None,
        thresholds: Mapping[str, Thresholds] | None = None,
        rules: Collection[str] | None = None,
        on_alert: str = "log",
        out: Path | str | None = None,
        base: bool = False,
    ) -> None:
        super().__init__()
        self._loggers: list[Any] = []
        self._step = 0
        self.monitor = Monitor(every, adapter, thresholds, rules, on_alert, out, self._log, base)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from where the training begins, which is not 0 when it is resumed."""
        del pl_module
        if trainer.global_step == 0:
            self.monitor.start()
        self._step, self._loggers = trainer.global_step, list(trainer.loggers)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look, if this batch has ended a step of the optimiser."""
        del outputs, batch, batch_idx
        if trainer.global_step == self._step:
            return  # gradients are still being gathered
        self._step = trainer.global_step
        if self.monitor.step(pl_module, self._step):
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the trajectory."""
        del trainer, pl_module
        self.monitor.finish()

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.monitor.load_state_dict(state_dict)

    def _log(self, values: dict[str, float], step: int) -> None:
        for logger in self._loggers:
            logger.log_metrics(values, step=step)
