"""Where a run is logged: CSV files, TensorBoard's or Weights & Biases, under the same names (docs/tracking.md).

What needs wandb (`wandb_runs`, `wandb_results`) is imported where a run is logged there, and not here.
"""

from lorabench.tracking.loggers import ROOM, csv_logger, logging_to, tensorboard_logger
from lorabench.tracking.names import prefix, summary_of
from lorabench.tracking.opening import Opened
from lorabench.tracking.tracker import Tracker

__all__ = [
    "ROOM", "Opened", "Tracker", "csv_logger", "logging_to", "prefix", "summary_of", "tensorboard_logger",
]  # fmt: skip
