"""Classifiers: LightningModules written for one member and trained for many."""

from lorabench.classifiers.base import Classifier, ClassifierFactory, OnEpoch
from lorabench.classifiers.building import build, class_of, probe, settings_of
from lorabench.classifiers.members import as_it_is, fit_members
from lorabench.classifiers.metrics import accuracy, confusion, expected_values, macro_f1, number_scores, scores
from lorabench.classifiers.problem import Columns, Fitted, Member, Problem
from lorabench.classifiers.streamed import Streamed

__all__ = [
    "Classifier",
    "ClassifierFactory",
    "Columns",
    "Fitted",
    "Member",
    "OnEpoch",
    "Problem",
    "Streamed",
    "accuracy",
    "as_it_is",
    "build",
    "class_of",
    "confusion",
    "expected_values",
    "fit_members",
    "macro_f1",
    "number_scores",
    "probe",
    "scores",
    "settings_of",
]
