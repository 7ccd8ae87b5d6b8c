"""What the name of a repository's part says, and what it may be."""

import re

from lorabench.errors import LorabenchError

__all__ = ["rank_said", "why_no_subset"]

_KNOWN = re.compile(
    r"(?:BuilderConfig '.*' not found|Config name is missing|Couldn't find cache).*?: (\[.*?\])", re.DOTALL
)
"""How `datasets` says so, by ValueErrors as others, online and of the parts that it keeps."""


def rank_said(rank: int | None, subset: str | None, pattern: str | None, *, copied: bool) -> int | None:
    """The rank of all adapters, by what was said and by the name of their subset.

    A list of numbers has a matrix for many ranks, so that a wrong one would be seen by nobody.

    Args:
        rank: what was said, or None.
        subset: the name of the part that is read.
        pattern: a regular expression whose first group is the rank in that name; None: names say nothing.
        copied: whether a copy is read; then `subset` may be what the configuration has by default, and is not enough.

    Raises:
        LorabenchError: the two disagree, or neither says it.
    """
    if pattern is None or subset is None:
        return rank
    named = _rank_in(subset, pattern)
    if rank is None and (copied or named is None):
        why = (
            "a copy (dataset.path) does not tell its rank"
            if copied
            else f"{pattern} finds no rank in the subset's name"
        )
        raise LorabenchError(
            f"dataset.rank=null, dataset.subset={subset}: {why}. Give both: dataset.subset=NAME, what these adapters "
            "are of, and dataset.rank=RANK, theirs."
        )
    if rank is not None and named is not None and rank != named:
        raise LorabenchError(
            f"dataset.rank={rank}: dataset.subset={subset} has the rank {named}. Set dataset.rank={named}, or "
            f"dataset.subset to one of rank {rank}."
        )
    return named if rank is None else rank


def _rank_in(subset: str, pattern: str) -> int | None:
    try:
        found = re.search(pattern, subset)
        text = found.group(1) if found else None
    except (re.error, IndexError) as error:
        raise LorabenchError(
            f"dataset.rank_in_subset={pattern}: no regular expression with a group ({error}). Mend it, for instance "
            "'_([0-9]+)$'."
        ) from error
    return int(text) if text and text.isdecimal() else None


def why_no_subset(error: ValueError, repository: str, subset: str | None, no_network: str | None) -> str | None:
    """What to say of an error that `datasets` raises where it does not know the part; None: it is of another kind."""
    known = _KNOWN.search(str(error))
    if known is None:
        return None
    names = ", ".join(re.findall(r"'(.*?)'", known.group(1)))
    kept = f" (kept on this disk; the hub was not asked, {no_network})" if no_network else ""
    said = "null" if subset is None else subset
    return f"dataset.subset={said}: {repository} has {names}{kept}. Set dataset.subset to one of these."
