"""What one look at an adapter, or at several, found."""

from dataclasses import dataclass

__all__ = ["LEVELS", "Finding", "worst"]

LEVELS = ("note", "ok", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "error": it is not whole, or must not be done so; "warning": look at it; "ok"; or "note": nothing was
            looked at.
        check: what was looked at, in a word or two.
        message: in words.
        refused: whether what was to be done refuses it by itself; other errors are a matter of judgement.
    """

    level: str
    check: str
    message: str
    refused: bool = False


def worst(findings: "list[Finding] | tuple[Finding, ...]") -> str:
    """The gravest level among findings; "ok" where there is none.

    >>> worst([Finding("ok", "names", "all alike"), Finding("warning", "norms", "one is ten times the other")])
    'warning'
    """
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")
