"""What a logger is told of the run that it is opened for."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Opened"]


@dataclass(frozen=True)
class Opened:
    """The run that a logger is opened for.

    Attributes:
        folder: the run's.
        name: what it is called: the data set and the representations.
        job_type: the representations alone.
        tags: the data set, the phase and the classifier.
        key: of the configuration and the code (`lorabench.configs.configuration_key`).
        fresh: whether it starts anew (`rerun=true`), and is not an earlier one that goes on.
    """

    folder: Path
    name: str
    job_type: str = ""
    tags: tuple[str, ...] = ()
    key: str = ""
    fresh: bool = False
