"""What a merge did: from which parents, by which method, and how far each module is from what was asked."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lorabench.adapters.comparing.deviation import ratio

__all__ = ["MergeReport", "ModuleMerge", "Parent"]


@dataclass(frozen=True)
class Parent:
    """One adapter that was merged.

    Attributes:
        name: its file's or folder's name.
        path: where it was read.
        sha256: of the file's bytes; None where no such file exists.
        modules: how many it has.
        given: its weight as asked for.
        weight: its weight as used.
    """

    name: str
    path: str
    sha256: str | None
    modules: int
    given: float
    weight: float


@dataclass(frozen=True)
class ModuleMerge:
    """One module of a merge. Errors are relative to the norm of what they are an error of: 0 where there is none,
    infinite where that is 0.

    Attributes:
        module: canonical name.
        ranks: of each parent, None where it lacks the module.
        rank: of the result, 0 where the module was left out.
        predicted: error of the factors before rounding, against what the method aims at: the weighted sum of the
            ΔW for concat, svd and linear; the sparsified ΔW for the others.
        measured: the same of the factors as stored.
        from_sum: ‖result − Σ w_i ΔW_i‖ / ‖Σ w_i ΔW_i‖ of the factors as stored; `measured` itself for concat,
            svd and linear.
        norm: ‖Σ w_i ΔW_i‖_F.
        target: norm of what the method aims at.
    """

    module: str
    ranks: tuple[int | None, ...]
    rank: int
    predicted: float
    measured: float
    from_sum: float
    norm: float
    target: float

    @classmethod
    def of(
        cls, module: str, ranks: Sequence[int | None], rank: int, *,
        predicted: float, measured: float, target: float, from_sum: float, norm: float,
    ) -> "ModuleMerge":  # fmt: skip
        """From distances that are not yet relative."""
        return cls(
            module, tuple(ranks), rank, ratio(predicted, target), ratio(measured, target), ratio(from_sum, norm),
            norm, target,
        )  # fmt: skip


@dataclass(frozen=True)
class MergeReport:
    """What `merge` did.

    Attributes:
        method: its name.
        options: what else was asked for, by name.
        parents: the adapters, in order.
        modules: one row each, those that were left out among them.
        notes: what the reader should know, in sentences.
    """

    method: str
    options: Mapping[str, Any]
    parents: tuple[Parent, ...]
    modules: tuple[ModuleMerge, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def weights(self) -> tuple[float, ...]:
        """As used."""
        return tuple(parent.weight for parent in self.parents)

    @property
    def predicted(self) -> float:
        """Of all modules together, as one long vector."""
        return _whole([(row.predicted, row.target) for row in self.modules])

    @property
    def measured(self) -> float:
        """Of all modules together, as one long vector."""
        return _whole([(row.measured, row.target) for row in self.modules])

    @property
    def from_sum(self) -> float:
        """Of all modules together, as one long vector."""
        return _whole([(row.from_sum, row.norm) for row in self.modules])

    @property
    def worst(self) -> ModuleMerge:
        """The module with the largest measured error."""
        return max(self.modules, key=lambda row: row.measured)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; infinite errors are infinite floats still."""
        return {
            "method": self.method,
            "weights": list(self.weights),
            "options": dict(self.options),
            "parents": [asdict(parent) for parent in self.parents],
            "predicted": self.predicted,
            "measured": self.measured,
            "from_sum": self.from_sum,
            "worst": asdict(self.worst),
            "modules": [asdict(row) for row in self.modules],
            "notes": list(self.notes),
        }

    def metadata(self) -> dict[str, str]:
        """Where the result comes from, for the metadata of its file: names and hashes of files, no paths."""
        parents = [{"name": one.name, "sha256": one.sha256, "weight": one.weight} for one in self.parents]
        found = {
            "method": self.method,
            "weights": json.dumps(list(self.weights)),
            "parents": json.dumps(parents),
            "rank": str(max(row.rank for row in self.modules)),
            "predicted_error": _number(self.predicted),
            "error": _number(self.measured),
            "worst_error": f"{_number(self.worst.measured)} {self.worst.module}",
        }
        found |= {name: str(value) for name, value in self.options.items() if value is not None and name != "rank"}
        return {f"lorabench_merge_{name}": value for name, value in found.items()}


def _whole(errors: Sequence[tuple[float, float]]) -> float:
    if any(math.isinf(error) for error, _ in errors):
        return math.inf
    return ratio(math.hypot(*(error * norm for error, norm in errors)), math.hypot(*(norm for _, norm in errors)))


def _number(value: float) -> str:
    return f"{value:.6g}"
