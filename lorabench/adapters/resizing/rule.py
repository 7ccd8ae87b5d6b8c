"""How a resize chooses ranks, as one object: its fields are the options of the command. Nothing here needs torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from lorabench.errors import LorabenchError
from lorabench.options import Above, AtLeast, AtMost, Help, Metavar, Spelled, documented

__all__ = ["MODES", "ResizeRule", "spelled"]

_COUNTED = ("rank", "pad", "truncate")
_KOHYA = ("sv_ratio", "sv_cumulative", "sv_fro")

MODES = (
    "rank",
    "sv_ratio",
    "sv_cumulative",
    "sv_fro",
    "energy",
    "total_energy",
    "parameters",
    "size_mib",
    "pad",
    "truncate",
)
"""The fields of a rule that say how ranks are chosen; exactly one is given."""


@documented
@dataclass(frozen=True)
class ResizeRule:
    """How ranks are chosen: by exactly one of `MODES`, within limits.

    By SVD, ΔW = left·diag(σ)·right is cut after r' singular values, which no ΔW' of rank r' betters (Eckart & Young
    1936); the modes differ in how r' follows from σ. `pad` and `truncate` add and take rows of the factors themselves.

    Raises:
        LorabenchError: not exactly one mode, a value out of its range, or options that do not go together.

    Example:
        >>> rule = ResizeRule(energy=0.95, max_rank=16)
        >>> rule.mode, rule.value
        ('energy', 0.95)
    """

    rank: Annotated[int | None, Help("SVD of ΔW to this rank, optimal"), Metavar("R"), AtLeast(1)] = None
    sv_ratio: Annotated[
        float | int | None, Help("SVD, keep singular values above the largest / T"), Metavar("T"), AtLeast(1)
    ] = None
    sv_cumulative: Annotated[
        float | int | None, Help("SVD, keep the fewest whose sum is T of the whole"), Metavar("T"), Above(0), AtMost(1)
    ] = None
    sv_fro: Annotated[
        float | int | None,
        Help("SVD, keep the fewest whose Frobenius norm is T of the whole"), Metavar("T"), Above(0), AtMost(1),
    ] = None  # fmt: skip
    energy: Annotated[
        float | int | None,
        Help("SVD, keep the fewest whose sum of squares is T of the whole"), Metavar("T"), Above(0), AtMost(1),
    ] = None  # fmt: skip
    total_energy: Annotated[
        float | int | None,
        Help("SVD, one threshold over all modules: the fewest values whose sum of squares is T of the whole adapter's"),
        Metavar("T"), Above(0), AtMost(1),
    ] = None  # fmt: skip
    parameters: Annotated[
        int | None, Help("SVD, the least total error with at most this many numbers in all factors"), AtLeast(1)
    ] = None
    size_mib: Annotated[
        float | int | None, Help("SVD, the least total error in a file of at most this size"), Metavar("MIB"), Above(0)
    ] = None
    pad: Annotated[
        int | None,
        Help("zeros up to this rank or ΔW's short side; ΔW stays as it is"),
        Metavar("R"),
        AtLeast(1),
    ] = None
    truncate: Annotated[
        int | None,
        Help("the first R rows and columns of the factors; quick and not optimal"), Metavar("R"), AtLeast(1),
    ] = None  # fmt: skip
    limits: Annotated[
        Mapping[str, int],
        Help("largest rank of a part (text_encoder), a module, or a pattern ('*.attn2.*'), in every mode but pad"),
        Metavar("R"), Spelled("--limit"), AtLeast(1),
    ] = field(default_factory=dict)  # fmt: skip
    min_rank: Annotated[int, Help("least rank, where the spectrum decides"), Metavar("R"), AtLeast(1)] = 1
    max_rank: Annotated[int | None, Help("largest rank, where the spectrum decides"), Metavar("R"), AtLeast(1)] = None
    kohya_counts: Annotated[bool, Help("keep one value more, as kohya's older tools did")] = False
    drop_dora: Annotated[bool, Help("lose the magnitudes of DoRA modules")] = False
    drop_unsupported: Annotated[bool, Help("leave out what is no low-rank pair, heads and biases too")] = False

    def __post_init__(self) -> None:
        given = {mode: value for mode in MODES if (value := getattr(self, mode)) is not None}
        if len(given) != 1:
            came = ", ".join(spelled(mode, value) for mode, value in given.items()) or "none"
            raise LorabenchError(f"resize needs exactly one of {', '.join(MODES)}; {came} came.")
        _check_value(self.mode, self.value)
        for what, number in (("min_rank", self.min_rank), ("max_rank", self.max_rank)):
            if number is not None:
                _check_rank(spelled(what, number), number)
        for name, number in self.limits.items():
            _check_rank(f"limits[{name!r}]={number!r} (--limit {name}={number})", number)
        self._check_together()

    @property
    def mode(self) -> str:
        """The one of `MODES` that was given."""
        return next(mode for mode in MODES if getattr(self, mode) is not None)

    @property
    def value(self) -> float | int:
        """Its value."""
        value: float | int = getattr(self, self.mode)
        return value

    @property
    def by_spectrum(self) -> bool:
        """Whether singular values decide, so that modules differ."""
        return self.mode not in _COUNTED

    def _check_together(self) -> None:
        if not self.by_spectrum and (self.min_rank != 1 or self.max_rank is not None):
            raise LorabenchError(
                f"min_rank and max_rank (--min-rank, --max-rank) do not go with {spelled(self.mode, self.value)}, "
                "which says the rank itself. Leave them away, or use limits (--limit) for single modules."
            )
        highest = [number for number in (self.max_rank, *self.limits.values()) if number is not None]
        if highest and min(highest) < self.min_rank:
            raise LorabenchError(
                f"{spelled('min_rank', self.min_rank)} is above a limit of {min(highest)}. Lower the one or raise the "
                "other."
            )
        if self.mode == "pad" and self.limits:
            raise LorabenchError("limits (--limit) do not go with pad, which takes nothing away. Use rank or truncate.")
        if self.kohya_counts and self.mode not in _KOHYA:
            raise LorabenchError(
                f"kohya_counts (--kohya-counts) goes with {', '.join(_KOHYA)}, not with {self.mode}. Leave it away."
            )


def spelled(argument: str, value: object) -> str:
    """A wrong argument as a caller and as a command line spells it.

    >>> spelled("size_mib", -1.0)
    'size_mib=-1.0 (--size-mib -1)'
    """
    typed = int(value) if isinstance(value, float) and value.is_integer() else value
    return f"{argument}={value!r} (--{argument.replace('_', '-')} {typed})"


def _check_value(mode: str, value: float | int) -> None:
    if mode in _COUNTED:
        _check_rank(spelled(mode, value), value)
        return
    if mode == "parameters":
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LorabenchError(f"{spelled(mode, value)}: a whole number from 1 on is needed.")
        return
    number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if mode == "sv_ratio":
        fine, allowed = number and value >= 1, "a ratio from 1 on, 2 to 20 say"
    elif mode == "size_mib":
        fine, allowed = number and value > 0, "a size in MiB above 0"
    else:
        fine, allowed = number and 0 < value <= 1, "a share above 0 and up to 1, 0.9 say"
    if not fine:
        raise LorabenchError(f"{spelled(mode, value)}: {allowed} is needed.")


def _check_rank(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LorabenchError(f"{what}: a rank is a whole number from 1 on.")
