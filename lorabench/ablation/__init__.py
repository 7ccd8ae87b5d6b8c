"""Which layers carry the answer, and what is left without them."""

from lorabench.ablation.study import Ablation, Findings, Study

__all__ = ["Ablation", "Findings", "Study"]
