"""How to merge: the method and its options, checked; torch-free, so that a command line can offer them at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lorabench.errors import LorabenchError

__all__ = ["DENSE", "METHODS", "MISSING", "Majority", "Recipe"]

Majority = Literal["total", "count"]

METHODS = ("svd", "concat", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
DENSE = METHODS[3:]
"""Methods that form ΔW, one module at a time."""
MISSING = ("zero", "skip", "error")


@dataclass(frozen=True)
class Recipe:
    """The arguments of `merge` that say how; see there.

    Raises:
        LorabenchError: one of them is not allowed, or does not go with the method.
    """

    method: str = "svd"
    rank: int | None = None
    density: float | int = 0.5
    majority: str = "total"
    normalize: bool = True
    seed: int = 0
    missing: str = "zero"

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("majority", self.majority, get_args(Majority))
        _one_of("missing", self.missing, MISSING)
        if self.rank is not None and self.method in ("concat", "linear"):
            way = "its rank is the sum of the parents'" if self.method == "concat" else "it keeps the parents' rank"
            raise LorabenchError(
                f"rank={self.rank} (--rank) with method={self.method!r} (--method): {way}. "
                "Use --method svd, or give no rank."
            )
        if self.rank is not None and self.rank < 1:
            raise LorabenchError(f"rank={self.rank} (--rank): a whole number from 1 on is allowed.")
        if not 0 < self.density <= 1:
            raise LorabenchError(
                f"density={self.density} (--density): the share of the entries that is kept; over 0 and up to 1 is "
                "allowed."
            )

    @property
    def by(self) -> Majority:
        """`majority`, as its type."""
        return "count" if self.majority == "count" else "total"

    def options(self) -> dict[str, Any]:
        """What the method uses of it, for the record."""
        used: dict[str, Any] = {"normalize": self.normalize, "missing": self.missing}
        used |= {"rank": self.rank} if self.method not in ("concat", "linear") else {}
        used |= {"density": self.density} if self.method in DENSE else {}
        used |= {"majority": self.majority} if self.method.endswith("ties") else {}
        return used | ({"seed": self.seed} if self.method.startswith("dare") else {})


def _one_of(argument: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise LorabenchError(f"{argument}={value!r} (--{argument}): allowed are {', '.join(allowed)}.")
