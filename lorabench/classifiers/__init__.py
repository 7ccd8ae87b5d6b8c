"""Classifiers: LightningModules written for one member and trained for many."""

from lorabench.classifiers.base import Classifier, ClassifierFactory
from lorabench.classifiers.members import Fitted, as_it_is, fit_members
from lorabench.classifiers.metrics import accuracy, confusion, expected_values, macro_f1, number_scores, scores
from lorabench.classifiers.problem import Columns, Member, Problem
from lorabench.classifiers.streamed import Streamed

__all__ = [
    "Classifier",
    "ClassifierFactory",
    "Columns",
    "Fitted",
    "Member",
    "Problem",
    "Streamed",
    "accuracy",
    "as_it_is",
    "confusion",
    "expected_values",
    "fit_members",
    "macro_f1",
    "number_scores",
    "scores",
]
