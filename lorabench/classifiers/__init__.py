"""Classifiers: LightningModules written for one member and trained for many."""

from lorabench.classifiers.base import Classifier, ClassifierFactory, epoch_order
from lorabench.classifiers.members import Fitted, Member, fit_members
from lorabench.classifiers.metrics import confusion, scores

__all__ = [
    "Classifier",
    "ClassifierFactory",
    "Fitted",
    "Member",
    "confusion",
    "epoch_order",
    "fit_members",
    "scores",
]
