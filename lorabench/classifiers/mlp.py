"""The multilayer perceptron that reads feature vectors."""

from typing import Annotated, Any

from torch import nn

from lorabench.classifiers.base import Classifier
from lorabench.options import AtLeast
from lorabench.training import Probability, SeededDropout

__all__ = ["MLP"]


class MLP(Classifier):
    """Hidden layers of ReLU and dropout, then logits.

    Args:
        hidden: widths of the hidden layers.
        dropout: probability of zeroing a hidden unit.
        **settings: those of `Classifier`.
    """

    def __init__(self, hidden: Annotated[list[int], AtLeast(1)], dropout: Probability, **settings: Any) -> None:
        super().__init__(hidden=hidden, dropout=dropout, **settings)

    def build(self) -> nn.Module:
        """Linear, ReLU and dropout for every hidden width, then a linear layer."""
        layers: list[nn.Module] = []
        width = self.in_features
        for size in self.hparams["hidden"]:
            layers += [nn.Linear(width, size), nn.ReLU(), SeededDropout(self.hparams["dropout"])]
            width = size
        return nn.Sequential(*layers, nn.Linear(width, self.n_classes))
