"""The multilayer perceptron that reads feature vectors."""

from typing import Any

from torch import nn

from lorabench.classifiers.base import Classifier
from lorabench.training import SeededDropout

__all__ = ["MLP"]


class MLP(Classifier):
    """Hidden layers of ReLU and dropout, then logits.

    Args:
        hidden: widths of the hidden layers.
        dropout: probability of zeroing a hidden unit.
        **settings: those of `Classifier`.
    """

    def __init__(self, hidden: list[int], dropout: float | int, **settings: Any) -> None:
        self.hidden, self.dropout = list(hidden), dropout
        super().__init__(hidden=self.hidden, dropout=dropout, **settings)

    def build(self) -> nn.Module:
        """Linear, ReLU and dropout for every hidden width, then a linear layer."""
        layers: list[nn.Module] = []
        width = self.in_features
        for size in self.hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), SeededDropout(self.dropout)]
            width = size
        return nn.Sequential(*layers, nn.Linear(width, self.n_classes))
