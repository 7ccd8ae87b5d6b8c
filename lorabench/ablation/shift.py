"""Whether what was learned of one recipe holds for another: altered adapters, recipes held out, another zoo."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from lorabench.ablation.altered import (
    Alteration,
    merged,
    noisy,
    rescaled,
    resized,
    stored,
    with_modules_missing,
)
from lorabench.ablation.copies import Altered, altered_rows, evaluate_copies
from lorabench.ablation.counterparts import called_beside, check_counterpart, check_other, in_other
from lorabench.ablation.phase import Ablation
from lorabench.ablation.recipes import RecipeShift
from lorabench.ablation.study import Findings, Study, with_holm
from lorabench.errors import LorabenchError
from lorabench.findings import Finding
from lorabench.options import Above, AtLeast, AtMost, OneOf
from lorabench.zoo import Zoo

__all__ = ["Shift", "ShiftFinding"]

Share = Annotated[list[float | int], Above(0), AtMost(1)]


@dataclass(frozen=True)
class ShiftFinding(Finding):
    """What every representation loses when the test adapters are not as the training adapters are.

    Attributes:
        rows: a row a representation and shift.
    """

    rows: list[Altered]


@dataclass
class Shift(Ablation):
    """Trained on the adapters as they are, tested on others.

    Every alteration is of the test adapters alone, and paired with what is said of them as they are. A recipe that is
    held out (`hold_out`) is paired with a training on as many adapters, some of which have it.

    Args:
        storage: types that all layers are rounded to.
        energy: shares of Σσ² that a resized module keeps.
        rank_share: shares of a module's rank that it is resized to.
        scale: factors of α.
        missing: shares of the modules that are gone.
        merged: whether each is averaged with an adapter of another category, and is to be read as the first.
        noise: ‖noise‖ / ‖ΔW‖ of every module.
        hold_out: column of the recipe -> the value, or [lowest, highest], that training adapters do not have.
        other: a zoo whose adapters of the same names are tested too.
        adapters: how many test adapters of a split are altered, a draw; None: all.
    """

    storage: Annotated[list[str], OneOf(("float16", "bfloat16", "int8"))] = field(default_factory=list)
    energy: Share = field(default_factory=list)
    rank_share: Share = field(default_factory=list)
    scale: Annotated[list[float | int], Above(0)] = field(default_factory=list)
    missing: Share = field(default_factory=list)
    merged: bool = False
    noise: Annotated[list[float | int], Above(0)] = field(default_factory=list)
    hold_out: Mapping[str, Any] | None = None
    other: Any = None  # a Zoo; anything else is told apart below, whatever a configuration says
    adapters: Annotated[int | None, AtLeast(2)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_other(self.other)
        if self.hold_out is not None and not (isinstance(self.hold_out, Mapping) and self.hold_out):
            raise LorabenchError(
                f"ablation.hold_out={self.hold_out}: a recipe and its value are needed, such as {{steps: 10}}, or null"
            )

    def run(self, study: Study) -> Findings:
        """One row a representation, and one a representation and shift.

        Raises:
            LorabenchError: nothing is to be shifted, or a shift cannot be made of this zoo.
        """
        alterations = self._alterations(study.zoo)
        recipes = [RecipeShift(study, column, value) for column, value in (self.hold_out or {}).items()]
        if not alterations and not recipes:
            raise LorabenchError(
                "ablation=shift: nothing is shifted; give one of storage, energy, rank_share, scale, missing, merged, "
                "noise, hold_out and other"
            )
        if self.other is not None:
            check_counterpart(study.zoo, self.other)
        names = None if self.other is None else frozenset(self.other.labels.adapters)
        copied = evaluate_copies(study, alterations, self.adapters, names)
        rows = altered_rows(copied, {name: [name] for name in alterations})
        rows += [row for recipe in recipes for row in recipe.rows()]
        order = list(study.chosen)
        rows.sort(key=lambda row: order.index(row.representation))
        return copied.findings(ShiftFinding(self.name, with_holm(rows, lambda row: row.representation)))

    def _alterations(self, zoo: Zoo) -> dict[str, Alteration]:
        """By the names that the zoo's table has."""
        found: dict[str, Alteration] = {one: functools.partial(stored, dtype=one) for one in self.storage}
        found |= {f"{100 * share:g} % of the energy": functools.partial(resized, energy=share) for share in self.energy}
        found |= {f"rank × {share:g}": functools.partial(resized, share=share) for share in self.rank_share}
        found |= {f"α × {factor:g}": functools.partial(rescaled, factor=factor) for factor in self.scale}
        found |= {
            f"{100 * share:g} % of the modules missing": functools.partial(with_modules_missing, share=share)
            for share in self.missing
        }
        if self.merged:
            found["merged with a stranger"] = merged
        found |= {f"noise of {100 * share:g} %": functools.partial(noisy, share=share) for share in self.noise}
        if self.other is not None:
            found[f"in {called_beside(zoo, self.other)}"] = functools.partial(in_other, other=self.other)
        return found
