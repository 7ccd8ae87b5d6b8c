"""Which arms' features are in memory at one time, and which are read from a file while members train."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Room", "Together", "together"]

Key = TypeVar("Key")
_COPIES = 3  # the features, their standardised copy, and one unit in float64
_POOLS = 3  # a pool is at most this part of what is allowed: a lane has one, and a file is written through two


@dataclass(frozen=True)
class Room:
    """What features may take.

    Attributes:
        allowed: bytes.
        adapters: N.
        lanes: members that are at work at one time, each of which copies the columns that it reads where these are not
            all.
    """

    allowed: int
    adapters: int
    lanes: int

    def needed(self, floats: int, parts: bool) -> int:
        """Bytes of so many numbers an adapter, with the copies that training needs.

        Args:
            floats: numbers of one adapter.
            parts: whether some arm leaves out layers.
        """
        return 4 * self.adapters * floats * (max(_COPIES, 1 + self.lanes) if parts else _COPIES)

    @property
    def pool_bytes(self) -> int:
        """Of a pool: a power of two, so that as much free memory as yesterday gives yesterday's numbers."""
        return 1 << max(0, int(self.allowed // max(_POOLS, 2 * self.lanes)).bit_length() - 1)


@dataclass(frozen=True)
class Together:
    """Arms whose features are there at one time.

    Attributes:
        arms: their numbers.
        pool_bytes: None where the features are in memory; else they lie in a file, and this is what a pool of them
            may take.
    """

    arms: tuple[int, ...]
    pool_bytes: int | None = None


def together(units: Sequence[Mapping[Key, int]], parts: Sequence[bool], room: Room) -> list[Together]:
    """All arms at once, if memory holds their features; else as many at a time as it holds, and the rest from a file.

    Args:
        units: of every arm, {unit: numbers of one adapter}; arms without any are left out.
        parts: whether an arm leaves out layers.
        room: what there is.
    """
    standing = [number for number, own in enumerate(units) if own]

    def fits(arms: Sequence[int]) -> bool:
        floats = sum({key: width for arm in arms for key, width in units[arm].items()}.values())
        return room.needed(floats, any(parts[arm] for arm in arms)) <= room.allowed

    if not standing or fits(standing):
        return [Together(tuple(standing))] if standing else []
    batches: list[list[int]] = []
    for _, arms in itertools.groupby(standing, key=lambda arm: tuple(units[arm])):  # of the same units: one batch
        same = list(arms)
        if not fits(same):
            continue
        if batches and fits([*batches[-1], *same]):
            batches[-1] += same
        else:
            batches.append(same)
    found = [Together(tuple(batch)) for batch in batches]
    large = sorted(set(standing) - {arm for batch in batches for arm in batch})
    return [*found, Together(tuple(large), room.pool_bytes)] if large else found
