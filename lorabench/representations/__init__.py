"""Representations of adapter weights: one file each, named like its yaml."""

from lorabench.representations.base import Representation

__all__ = ["Representation"]
