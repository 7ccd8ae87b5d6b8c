"""What classifiers and learned representations share: the loop, Adam, schedules, randomness that follows from keys."""

from lorabench.training.adam import Adam
from lorabench.training.keyed import Keyed, SeededDropout, SeededNoise, set_keys
from lorabench.training.onednn import ONEDNN, by_onednn
from lorabench.training.randomness import draw_keys, epoch_order, keep_mask, normal, seeded
from lorabench.training.schedule import Schedule
from lorabench.training.scripted import Step, traced_step, without_python
from lorabench.training.stack import Course, Stack, lost, train
from lorabench.training.standardising import mean_and_scale, standardised

__all__ = [
    "ONEDNN",
    "Adam",
    "Course",
    "Keyed",
    "Schedule",
    "SeededDropout",
    "SeededNoise",
    "Stack",
    "Step",
    "by_onednn",
    "draw_keys",
    "epoch_order",
    "keep_mask",
    "lost",
    "mean_and_scale",
    "normal",
    "seeded",
    "set_keys",
    "standardised",
    "traced_step",
    "train",
    "without_python",
]
