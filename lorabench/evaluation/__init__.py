"""How well a representation reads the labels when some layers stand."""

from lorabench.evaluation.arm import Arm, Evaluation, Probe
from lorabench.evaluation.clock import Clock
from lorabench.evaluation.evaluator import Evaluator

__all__ = ["Arm", "Clock", "Evaluation", "Evaluator", "Probe"]
