"""Launchers that are not installed with lorabench itself."""

import importlib.util
from collections.abc import Sequence

__all__ = ["missing_launcher"]

_PLUGINS = {
    "submitit_local": ("submitit", "cluster"),
    "submitit_slurm": ("submitit", "cluster"),
    "slurm_cpu": ("submitit", "cluster"),
    "slurm_gpu": ("submitit", "cluster"),
    "joblib": ("joblib", "joblib"),
}
"""Launcher -> its plugin, and the extra that brings it."""


def missing_launcher(words: Sequence[str]) -> str | None:
    """What to install for the launcher that a command line names; None where nothing lacks.

    Hydra would say that a file of its configuration cannot be found.
    """
    for word in words:
        key, _, name = word.partition("=")
        plugin, extra = _PLUGINS.get(name, ("", ""))
        if (
            key == "hydra/launcher"
            and plugin
            and not importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}_launcher")
        ):
            return f"{word}: its engine is not installed. Install the extra: pip install 'lorabench[{extra}]'"
    return None
