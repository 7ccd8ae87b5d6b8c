"""Which layers carry the answer, and what is left without them."""

from lorabench.ablation.phase import Ablation
from lorabench.ablation.study import Findings, Study

__all__ = ["Ablation", "Findings", "Study"]
