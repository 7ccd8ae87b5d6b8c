"""Where a run is logged: CSV files, TensorBoard's or Weights & Biases, under the same names (docs/tracking.md)."""

from lorabench.tracking.loggers import ROOM, csv_logger, logging_to, tensorboard_logger
from lorabench.tracking.names import prefix, summary_of
from lorabench.tracking.opening import Opened
from lorabench.tracking.tracker import Tracker
from lorabench.tracking.wandb_runs import wandb_logger

__all__ = [
    "ROOM", "Opened", "Tracker", "csv_logger", "logging_to", "prefix", "summary_of", "tensorboard_logger",
    "wandb_logger",
]  # fmt: skip
