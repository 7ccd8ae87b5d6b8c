"""What phases find, as data: `results.json` is written from these classes and read into them."""

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

__all__ = [
    "LEVEL",
    "Claim",
    "Compared",
    "Corrected",
    "Difference",
    "Finding",
    "Interval",
    "Measured",
    "Number",
    "OrderedFinding",
    "Ranked",
    "RankedFinding",
    "Stability",
    "read_finding",
    "validated",
    "written_finding",
]

_T = TypeVar("_T")

LEVEL = 0.05
"""Of every p: a claim is made where its p is below."""


def _known(value: object) -> object:
    return math.nan if value is None else value


class _NullIsNaN:
    """Tells pydantic to read null as NaN; it is imported where something is read alone."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(_known, handler(source))


Number = Annotated[float, _NullIsNaN()]
"""A float whose NaN is null in a file."""


@runtime_checkable
class Interval(Protocol):
    """Something with a 95 % interval."""

    @property
    def low(self) -> float:
        """The lower end."""
        ...

    @property
    def high(self) -> float:
        """The upper end."""
        ...


@runtime_checkable
class Claim(Interval, Protocol):
    """An interval and the p of no difference."""

    @property
    def p(self) -> float:
        """Two-sided."""
        ...


@dataclass(frozen=True)
class Corrected:
    """A difference by the corrected resampled t over splits (`lorabench.ablation.inference`)."""

    low: Number
    high: Number
    p: Number
    error: Number
    splits: int


@dataclass(frozen=True)
class Difference:
    """How far one arm is ahead of another.

    Attributes:
        difference: mean accuracy of the first minus that of the second.
        low, high: its interval; NaN where nothing could be resampled (one seed and one group).
        p: two-sided bootstrap p-value of no difference; NaN likewise.
        seeds, adapters: what the means run over.
        corrected: over several splits, beside the bootstrap.
    """

    difference: Number
    low: Number
    high: Number
    p: Number
    seeds: int
    adapters: int
    corrected: Corrected | None = None

    @property
    def claimed(self) -> Claim:
        """What holds the interval and the p of a claim: the corrected t over several splits, the bootstrap on one."""
        return self.corrected or self


@dataclass(frozen=True, kw_only=True)
class Compared(Difference):
    """The difference of a representation's accuracy to another's.

    Attributes:
        representation: of the first arm.
        holm: p of the claim, corrected for all comparisons of its family; NaN until they are known.
    """

    representation: str
    holm: Number = math.nan

    @property
    def shown_above(self) -> bool:
        """Whether the first arm is shown to be above: by its interval, and by Holm's p."""
        return self.claimed.low > 0 and self.holm < LEVEL

    @property
    def shown_below(self) -> bool:
        """Whether it is shown to be below."""
        return self.claimed.high < 0 and self.holm < LEVEL


@dataclass(frozen=True)
class Measured:
    """Test accuracy of an arm: mean, sample standard deviation and number of seeds, and the 95 % interval."""

    mean: Number
    std: Number
    n: int
    low: Number
    high: Number


@dataclass(frozen=True)
class Ranked:
    """A layer's place in the ranking. Accuracies are fractions.

    Attributes:
        layer: its name.
        rank: from 1, the best.
        accuracy: mean over seeds on the split that ranks.
        low, high: its 95 % interval over seeds and groups of adapters; NaN for one seed and one group.
        std: sample standard deviation over seeds on that split; NaN for one seed.
        val_accuracy, test_accuracy: mean over seeds on the two splits.
        per_seed: accuracy of each seed on the split that ranks; over several splits, of each split.
        tied_to: the last rank that the layer cannot be told from; its own where it is told from the next one.
        p: two-sided bootstrap p of no difference to the best layer on the split that ranks; 1 for the best itself.
        holm: the same, corrected for all other layers of the ranking.
    """

    layer: str
    rank: int
    accuracy: Number
    low: Number
    high: Number
    std: Number
    val_accuracy: Number
    test_accuracy: Number
    per_seed: list[Number]
    tied_to: int
    p: Number
    holm: Number


@dataclass(frozen=True)
class Stability:
    """How far the rows of a ranking agree on the order: mean and lowest Kendall's τ-b over their pairs.

    Attributes:
        kendall_tau, lowest: None where no pair has one: a single row or layer, or rows that rate all layers the same.
            A pair with such a row counts in neither.
        seeds: number of rows.
        of: what the rows are: "seeds" of one split, or "splits".
    """

    kendall_tau: float | None
    lowest: float | None
    seeds: int
    of: str = "seeds"


@dataclass(frozen=True)
class Finding:
    """What a phase found. A phase `lorabench/ablation/NAME.py` has a subclass, `report/phases/NAME.py` shows it.

    Attributes:
        name: of the ablation, as the configuration says it.
    """

    name: str

    @classmethod
    def phase(cls) -> str:
        """Name of the module of the phase."""
        return cls.__module__.rpartition(".")[2]


@dataclass(frozen=True)
class OrderedFinding(Finding):
    """A finding with something in the order of an accuracy.

    Attributes:
        rank_on: the part whose accuracy it is: val, or test for the published protocol.
    """

    rank_on: str


@dataclass(frozen=True)
class RankedFinding(OrderedFinding):
    """A finding with a ranking of layers (or modules).

    Attributes:
        baseline: name of the representation that ranks.
        folds: of the cross-validation that ranks; 1: the validation adapters do.
        ranking: best first.
        stability: how far seeds or splits agree.
        dropped_seeds: seeds left out because a member of theirs failed, and why.
    """

    baseline: str
    folds: int
    ranking: list[Ranked]
    stability: Stability
    dropped_seeds: list[str]

    @property
    def marked(self) -> int:
        """How many of the best have a part in what was found."""
        return 0


def written_finding(found: Finding) -> dict[str, Any]:
    """For results.json: the fields, and the `phase` whose they are."""
    return {"phase": type(found).phase(), **asdict(found)}


def read_finding(data: object) -> Finding:
    """What `written_finding` has made, after a way through JSON.

    Raises:
        ValueError: there is no such phase, or the fields are another phase's.
    """
    fields = dict(data) if isinstance(data, dict) else {}
    phase = str(fields.pop("phase", ""))
    path = f"lorabench.ablation.{phase}"
    if not phase.isidentifier() or importlib.util.find_spec(path) is None:
        raise ValueError(f"ablation: there is no phase {phase!r}")
    known = [one for one in vars(importlib.import_module(path)).values() if isinstance(one, type)]
    own = [one for one in known if issubclass(one, Finding) and one.__module__ == path]
    if not own:
        raise ValueError(f"ablation: there is no phase {phase!r}")
    return validated(own[0], fields)


def validated(kind: type[_T], data: dict[str, Any]) -> _T:
    """Data as a dataclass.

    Raises:
        ValueError: they are not its; the message is one line, of the first field that is wrong.
    """
    from pydantic import ValidationError

    try:
        found: _T = _reader(kind).validate_python(data)  # type: ignore[arg-type]  # a class can be hashed
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return found


@functools.cache
def _reader(kind: type[Any]) -> Any:
    """Made once: it takes a tenth of a second."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
