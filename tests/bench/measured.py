"""An evaluator that keeps what every evaluation took."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lorabench.classifiers import ClassifierFactory
from lorabench.engines import Engine
from lorabench.evaluation import Arm, Evaluation, Evaluator, Probe
from lorabench.representations import Representation
from lorabench.zoo import Zoo
from lorabench.zoo.splits import split_zoo

__all__ = ["Measured", "Measuring"]


@dataclass(frozen=True)
class Measured:
    """What one evaluation took.

    Attributes:
        name: of the representation.
        seconds: wall time of all of it.
        features: seconds for the features.
        training: seconds for the members, their metrics included.
        members: how many were trained.
        epochs: theirs together.
        peak: bytes that tensors took of a GPU at most; 0 on a CPU.
        error: why arms, or all of it, came to nothing.
    """

    name: str
    seconds: float
    features: float
    training: float
    members: int
    epochs: int
    peak: int
    error: str | None = None

    def as_row(self) -> str:
        """A row of a Markdown table."""
        peak = f"{self.peak / 1e9:.1f}" if self.peak else ""
        rate = f"{self.epochs / self.training:,.0f}" if self.training else ""
        title = f"{self.name} ({self.error})" if self.error else self.name
        return (
            f"| {title} | {self.features:.2f} | {self.training:.2f} | {self.members:,} | {self.epochs:,} | {rate} "
            f"| {peak} |"
        )


@dataclass
class Measuring(Evaluator):
    """An `Evaluator` with a stop watch; it takes no member from an earlier run.

    Attributes:
        measured: what every evaluation took, by the name of the representation.
    """

    measured: dict[str, Measured] = field(default_factory=dict)

    @classmethod
    def of(
        cls, zoo: Zoo, factory: ClassifierFactory, engine: Engine, device: torch.device, runs: int, cache_dir: Path
    ) -> "Measuring":
        """Of a zoo's categories, all of which are classes."""
        labels = zoo.labels.category
        classes = len(zoo.labels.category_names)
        split = split_zoo(zoo.labels)
        return cls(zoo, split, labels, classes, factory, engine, device, tuple(range(runs)), cache_dir, resume=False)

    def alone(self, layer: str) -> Arm:
        """The arm in which one layer stands."""
        return Arm(layer, (layer,))

    def evaluate(
        self, name: str, representation: Representation, arms: Sequence[Arm], probe: Probe | None = None
    ) -> list[Evaluation]:
        """`Evaluator.evaluate`, timed."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        found: list[Evaluation] = []
        try:
            found = super().evaluate(name, representation, arms, probe)
            return found
        finally:
            raised = sys.exception()
            runs = [run for one in found for run in one.runs]
            self.measured[name] = Measured(
                name=name,
                seconds=time.perf_counter() - start,
                features=self.clock.seconds.get(f"features/{name}", 0.0),
                training=self.clock.seconds.get(f"training/{name}", 0.0),
                members=len(runs),
                epochs=sum(run.epochs for run in runs),
                peak=torch.cuda.max_memory_allocated() if on_gpu else 0,
                error=self._error(found) if raised is None else str(raised),
            )

    @staticmethod
    def _error(found: Sequence[Evaluation]) -> str | None:
        """How many arms and members failed."""
        arms = sum(one.error is not None for one in found)
        members = sum(run.error is not None for one in found for run in one.runs)
        return f"{arms} arms and {members} members failed" if arms or members else None
