"""Which layers carry the answer, and what is left without them."""

from lorabench.ablation.study import Ablation, Findings, Study

__all__ = ["READ_THE_BASELINE", "Ablation", "Findings", "Study"]

READ_THE_BASELINE = ("layers", "clusters", "concepts")
"""Phases that look at no other representation than the one that ranks."""
