"""The baseline of every advice on ranks: the same ranks on other modules that cost the same."""

import random
from collections.abc import Hashable, Mapping

__all__ = ["shuffled"]


def shuffled(ranks: Mapping[str, int], kinds: Mapping[str, Hashable], generator: random.Random) -> dict[str, int]:
    """The ranks, drawn anew among the modules of one kind.

    Args:
        ranks: module -> rank.
        kinds: module -> its shape, say; modules of one kind change places.
        generator: is drawn from.

    >>> found = shuffled({"q": 1, "k": 2, "fc": 9}, {"q": "attention", "k": "attention", "fc": "mlp"}, random.Random(0))
    >>> sorted(found.values()), found["fc"]
    ([1, 2, 9], 9)
    """
    groups: dict[Hashable, list[str]] = {}
    for name in ranks:
        groups.setdefault(kinds[name], []).append(name)
    drawn: dict[str, int] = {}
    for names in groups.values():
        drawn |= zip(names, generator.sample([ranks[name] for name in names], len(names)), strict=True)
    return {name: drawn[name] for name in ranks}
