"""Representations of adapter weights: one file each, named like its yaml."""

from lorabench.representations.base import Representation
from lorabench.representations.learned import Learned

__all__ = ["Learned", "Representation"]
