"""What a run tells its logger, whichever it is: curves, diagnostics, final numbers."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger, WandbLogger

from lorabench.results import Result, Run
from lorabench.tracking.names import prefix, summary_of

__all__ = ["Tracker"]


class Tracker:
    """Gives a logger the numbers of a run, under the names of docs/tracking.md.

    Args:
        logger: takes them.
        chosen: names of the run's representations; the names of a single one's numbers do not hold its own.
    """

    def __init__(self, logger: Logger, chosen: Collection[str]) -> None:
        self._logger = logger
        self._chosen = tuple(chosen)

    def curves(self, representation: str, runs: Sequence[Run]) -> None:
        """Of every epoch, the mean over the members that were at work in it, and the lowest and the highest of them."""
        self._by_epoch(f"{prefix(representation, self._chosen)}curves/", [run.history for run in runs])

    def fitted(
        self,
        representation: str,
        histories: Sequence[Sequence[Mapping[str, float]]],
        units: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """How the autoencoders of a learned representation were trained.

        Args:
            representation: its name.
            histories: of every unit, a row an epoch.
            units: diagnostics of every unit: numbers, and `kl` by dimension, of which the mean over units is logged,
                from the largest.
        """
        before = prefix(representation, self._chosen)
        self._by_epoch(f"{before}fit/", histories)
        found: dict[str, float] = {}
        for unit, known in units.items():
            numbers = {key: value for key, value in known.items() if isinstance(value, int | float)}
            found |= {f"{before}unit/{unit}/{key}": float(value) for key, value in numbers.items()}
        kl = [sorted(known["kl"], reverse=True) for known in units.values() if "kl" in known]
        for k in range(max(map(len, kl), default=0)):
            found[f"{before}fit/kl_{k + 1}"] = float(np.mean([one[k] for one in kl if k < len(one)]))
        self._logger.log_metrics(found)

    def ended(self, result: Result, folder: Path) -> None:
        """The final numbers; W&B gets the tables, pictures and files of the run's folder too, so it is called last."""
        summary = summary_of(result)
        if isinstance(self._logger, WandbLogger):
            from lorabench.tracking.wandb_results import log_to_wandb

            log_to_wandb(self._logger.experiment, summary, result, folder)
        else:
            self._logger.log_metrics(summary)

    def _by_epoch(self, before: str, histories: Sequence[Sequence[Mapping[str, float]]]) -> None:
        for epoch in range(max(map(len, histories), default=0)):
            rows = [history[epoch] for history in histories if epoch < len(history)]
            found: dict[str, float] = {}
            for key in rows[0]:
                values = [row[key] for row in rows]
                found |= {key: float(np.mean(values)), f"{key}_low": min(values), f"{key}_high": max(values)}
            self._logger.log_metrics({f"{before}{key}": value for key, value in found.items()}, step=epoch)
