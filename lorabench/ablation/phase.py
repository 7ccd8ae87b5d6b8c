"""What the phases share: options that are held to their annotations, and a run."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lorabench.ablation.ranking import RankOn
from lorabench.ablation.study import Findings, Study
from lorabench.options import check_arguments

__all__ = ["Ablation", "RankingAblation"]


@dataclass
class Ablation(ABC):
    """One question about a zoo. A subclass is a dataclass of its options.

    Args:
        name: what results call the phase; its module's name, unless told otherwise.

    Raises:
        LorabenchError: an option is not allowed.
    """

    BASELINE_ALONE: ClassVar[bool] = False
    """Whether no other representation than the one that ranks is looked at."""

    name: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        self.name = self.name or type(self).__module__.rpartition(".")[-1]
        check_arguments(type(self), vars(self), "ablation.")

    @abstractmethod
    def run(self, study: Study) -> Findings:
        """What the question's answer is."""


@dataclass
class RankingAblation(Ablation):
    """A phase that ranks the layers first.

    Args:
        baseline: name of the representation that ranks, of layers or modules.
        rank_on: val, or test for the published protocol.
    """

    baseline: str | dict[str, Any]
    rank_on: RankOn
