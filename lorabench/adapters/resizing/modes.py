"""The ways to choose ranks, as a command and as arguments: nothing here needs torch."""

from typing import NamedTuple

__all__ = ["MODES", "Mode", "spelled"]


class Mode(NamedTuple):
    """How ranks are chosen: the name of its value, and what it does."""

    value: str
    what: str


MODES = {
    "rank": Mode("R", "SVD of ΔW to this rank, optimal"),
    "sv_ratio": Mode("T", "SVD, keep singular values above the largest / T"),
    "sv_cumulative": Mode("T", "SVD, keep the fewest whose sum is T of the whole, 0 to 1"),
    "sv_fro": Mode("T", "SVD, keep the fewest whose Frobenius norm is T of the whole, 0 to 1"),
    "energy": Mode("T", "SVD, keep the fewest whose sum of squares is T of the whole, 0 to 1"),
    "size_mib": Mode("MIB", "SVD, the least total error in a file of at most this size"),
    "pad": Mode("R", "zeros up to this rank or ΔW's short side; the update stays as it is"),
    "truncate": Mode("R", "the first R rows and columns of the factors; quick and not optimal"),
}
"""Every mode by the name of its argument; the option is the same with hyphens."""


def spelled(argument: str, value: object) -> str:
    """A wrong argument as a caller and as a command line spells it.

    >>> spelled("size_mib", -1.0)
    'size_mib=-1.0 (--size-mib -1)'
    """
    typed = int(value) if isinstance(value, float) and value.is_integer() else value
    return f"{argument}={value!r} (--{argument.replace('_', '-')} {typed})"
