"""A W&B workspace that compares the runs of a project."""

from lorabench.dashboard.workspace import definition_of, names_in, workspace_for

__all__ = ["definition_of", "names_in", "workspace_for"]
