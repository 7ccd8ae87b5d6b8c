"""Loggers that write below the run's folder, and how every logger is opened and closed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.tracking.opening import Opened

__all__ = ["ROOM", "csv_logger", "logging_to", "tensorboard_logger"]

ROOM = "Free some space, or choose another hydra.run.dir."
"""What to do when the run's folder takes no more."""


def csv_logger(run: Opened) -> CSVLogger:
    """Writes `csv/metrics.csv` and `csv/hparams.yaml` below the run's folder."""
    shutil.rmtree(run.folder / "csv", ignore_errors=True)  # an earlier run's, where output_dir names the folder
    return CSVLogger(str(run.folder), name="csv", version="", flush_logs_every_n_steps=1000)


def tensorboard_logger(run: Opened) -> TensorBoardLogger:
    """Writes event files and `hparams.yaml` into `tensorboard` below the run's folder.

    Raises:
        LorabenchError: the extra `tensorboard` is not installed.
    """
    shutil.rmtree(run.folder / "tensorboard", ignore_errors=True)  # an earlier run's
    try:
        return TensorBoardLogger(str(run.folder), name="tensorboard", version="", default_hp_metric=False)
    except ModuleNotFoundError as error:
        raise LorabenchError(
            "logger=tensorboard needs TensorBoard, which is not installed: pip install 'lorabench[tensorboard]', or "
            "take logger=csv"
        ) from error


@contextmanager
def logging_to(logger: Logger, config: dict[str, Any], folder: Path) -> Iterator[Logger]:
    """Log the configuration, and finish the run whatever happens: two jobs never share one W&B run."""
    failed = True
    try:
        logger.log_hyperparams(config)
        yield logger
        failed = False
    finally:
        with explain_disk_errors(folder, ROOM):
            logger.finalize("failed" if failed else "success")
            if isinstance(logger, WandbLogger):
                from lorabench.tracking.wandb_runs import close_wandb

                close_wandb(folder, failed)
