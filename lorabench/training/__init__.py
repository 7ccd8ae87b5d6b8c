"""What classifiers and learned representations share: Adam, schedules, and randomness that follows from keys."""

from lorabench.training.adam import Adam
from lorabench.training.randomness import draw_keys, epoch_order, keep_mask, seeded
from lorabench.training.schedule import Schedule

__all__ = ["Adam", "Schedule", "draw_keys", "epoch_order", "keep_mask", "seeded"]
