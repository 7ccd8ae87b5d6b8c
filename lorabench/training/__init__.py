"""What classifiers and learned representations share: the loop, Adam, schedules, randomness that follows from keys."""

from lorabench.training.adam import Adam, move, picked
from lorabench.training.keyed import Keyed, Probability, SeededDropout, SeededNoise, set_keys
from lorabench.training.randomness import draw_keys, epoch_order, keep_mask, normal, seeded
from lorabench.training.schedule import Schedule
from lorabench.training.scripted import bare, without_python
from lorabench.training.stack import Course, Stack, lost, train
from lorabench.training.standardising import Scaling, mean_and_scale, standardised

__all__ = [
    "Adam",
    "Course",
    "Keyed",
    "Probability",
    "Scaling",
    "Schedule",
    "SeededDropout",
    "SeededNoise",
    "Stack",
    "bare",
    "draw_keys",
    "epoch_order",
    "keep_mask",
    "lost",
    "mean_and_scale",
    "move",
    "normal",
    "picked",
    "seeded",
    "set_keys",
    "standardised",
    "train",
    "without_python",
]
