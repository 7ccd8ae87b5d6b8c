"""The MLP in small, for where many members are trained."""

from lorabench.classifiers.mlp import MLP

__all__ = ["SmallMLP"]


class SmallMLP(MLP):
    """The MLP with fewer and narrower layers, under a name of its own in tables."""
