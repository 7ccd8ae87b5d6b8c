"""How well a representation reads the labels when some layers stand."""

from lorabench.evaluation.arm import Arm, Evaluation, Probe
from lorabench.evaluation.clock import Clock
from lorabench.evaluation.evaluator import Evaluator
from lorabench.evaluation.merged import held_out, held_out_rows, merged

__all__ = ["Arm", "Clock", "Evaluation", "Evaluator", "Probe", "held_out", "held_out_rows", "merged"]
