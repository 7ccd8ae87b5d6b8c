"""What classifiers and learned representations share: Adam, schedules, and randomness that follows from keys."""

from lorabench.training.adam import Adam
from lorabench.training.keyed import Keyed, SeededDropout, SeededNoise, set_keys
from lorabench.training.onednn import ONEDNN, by_onednn
from lorabench.training.randomness import draw_keys, epoch_order, keep_mask, normal, seeded
from lorabench.training.schedule import Schedule
from lorabench.training.scripted import Step, traced_step, without_python

__all__ = [
    "ONEDNN",
    "Adam",
    "Keyed",
    "Schedule",
    "SeededDropout",
    "SeededNoise",
    "Step",
    "by_onednn",
    "draw_keys",
    "epoch_order",
    "keep_mask",
    "normal",
    "seeded",
    "set_keys",
    "traced_step",
    "without_python",
]
