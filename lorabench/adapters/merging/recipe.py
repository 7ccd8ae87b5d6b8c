"""How to merge: the method and its options, checked; torch-free, so that a command line can offer them at once."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lorabench.adapters.merging.methods import DEFAULT, Method, methods
from lorabench.errors import LorabenchError
from lorabench.options import Above, AtLeast, AtMost, Help, OneOf, check_options, documented

__all__ = ["DENSE", "METHODS", "Majority", "Recipe"]

Majority = Literal["total", "count"]

METHODS = tuple(methods())
DENSE = tuple(name for name, method in methods().items() if method.dense)
"""Methods that form ΔW, one module at a time."""
_EACH = "; ".join(f"{name}: {method.help}" for name, method in methods().items())


@documented
@dataclass(frozen=True)
class Recipe:
    """How `merge` goes about it.

    Raises:
        LorabenchError: a value is not allowed, or does not go with the method.

    >>> Recipe("ties", density=0.2).options()
    {'normalize': True, 'missing': 'zero', 'rank': None, 'density': 0.2, 'majority': 'total'}
    """

    method: Annotated[str, Help(_EACH), OneOf(METHODS)] = DEFAULT
    rank: Annotated[
        int | None,
        Help("of each module, up to its smaller side; default: the parents' largest (svd), their sum (on ΔW)"),
        AtLeast(1),
    ] = None
    density: Annotated[
        float | int, Help("share of the entries that methods on ΔW keep"), Above(0), AtMost(1)
    ] = 0.5  # fmt: skip
    majority: Annotated[
        str, Help("how a sign is elected: by the sum, or by the number of adapters"), OneOf(("total", "count"))
    ] = "total"
    normalize: Annotated[bool, Help("take the weights as they are; else they sum to 1")] = True
    seed: Annotated[int, Help("of dare's masks, and of the rows whose signs the preflight compares")] = 0
    missing: Annotated[
        str,
        Help("modules that some adapters lack: zero there, left out, or an error"),
        OneOf(("zero", "skip", "error")),
    ] = "zero"
    drop_dora: Annotated[bool, Help("merge DoRA adapters without their magnitudes")] = False
    drop_unsupported: Annotated[
        bool, Help("leave out what is no low-rank pair (biases, whole weights, ...)")
    ] = False  # fmt: skip
    dtype: Annotated[
        str | None,
        Help("of the factors; default: the half type that all adapters have, or float32"),
        OneOf(("float32", "float16", "bfloat16")),
    ] = None

    def __post_init__(self) -> None:
        check_options(self)
        if self.rank is not None and self.way.fixed_rank:
            raise LorabenchError(
                f"rank={self.rank} (--rank) with method={self.method!r} (--method): {self.way.fixed_rank}. "
                "Use --method svd, or give no rank."
            )

    @property
    def way(self) -> Method:
        """What the method's file says of it."""
        return methods()[self.method]

    def options(self) -> dict[str, Any]:
        """What the method uses of it, for the record."""
        return {name: getattr(self, name) for name in ("normalize", "missing", *self.way.options)}
