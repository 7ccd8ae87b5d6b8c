"""Where a run is logged: a CSV file, or Weights & Biases."""

import logging
import netrc
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import ParseResult, urlparse

import wandb
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.options import OneOf, check_arguments

_LOG = logging.getLogger(__name__)

__all__ = ["ROOM", "csv_logger", "log_summary", "logging_to", "wandb_logger"]

ROOM = "Free some space, or choose another hydra.run.dir."
"""What to do when the run's folder takes no more."""


def csv_logger(folder: str, name: str) -> CSVLogger:
    """Writes `csv/metrics.csv` and `csv/hparams.yaml` below `folder`."""
    del name
    shutil.rmtree(Path(folder) / "csv", ignore_errors=True)  # an earlier run's, where output_dir names the folder
    return CSVLogger(folder, name="csv", version="", flush_logs_every_n_steps=1000)


def wandb_logger(
    folder: str,
    name: str,
    project: str,
    entity: str | None = None,
    group: str | None = None,
    mode: Annotated[str, OneOf(["auto", "online", "offline"])] = "auto",
) -> WandbLogger:
    """One W&B run a job; offline where there is no key or no network, unless told otherwise.

    Raises:
        LorabenchError: mode is none of these, or online was asked for without a key.
    """
    check_arguments(wandb_logger, {"mode": mode}, "logger.")
    if mode == "online" and not _has_key():
        raise LorabenchError(
            "logger.mode=online needs a key: set WANDB_API_KEY or run `wandb login`, or take mode=auto"
        )
    offline = mode == "offline" or (mode == "auto" and not (_has_key() and _reachable()))
    if offline:
        _LOG.warning("W&B is offline; `wandb sync %s/wandb/offline-run-*` uploads this run later", folder)
    # Lightning's own call of `init` passes a setting that wandb warns about.
    opened = wandb.init(
        name=name,
        dir=folder,
        project=project,
        entity=entity,
        group=group,
        mode="offline" if offline else "online",
        settings=wandb.Settings(silent=True, console="off"),
        reinit="finish_previous",
    )
    return WandbLogger(experiment=opened)


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
            wandb.finish(exit_code=int(failed))


def log_summary(logger: Logger, summary: dict[str, float]) -> None:
    """The final numbers, as the run's summary."""
    if isinstance(logger, WandbLogger):
        logger.experiment.summary.update(summary)
    else:
        logger.log_metrics(summary)


def _host() -> str:
    return _server().hostname or ""


def _server() -> ParseResult:
    return urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(_host()) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def _reachable() -> bool:
    try:
        with socket.create_connection(
            (_host(), _server().port or (80 if _server().scheme == "http" else 443)), timeout=3
        ):
            return True
    except OSError:
        return False
