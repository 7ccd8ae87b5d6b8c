"""The linear probe."""

from torch import nn

from lorabench.classifiers.base import Classifier

__all__ = ["Linear"]


class Linear(Classifier):
    """Multinomial logistic regression, trained as the MLP is."""

    def build(self) -> nn.Module:
        """One linear layer."""
        return nn.Linear(self.in_features, self.n_classes)
