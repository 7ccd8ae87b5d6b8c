"""Adapters' spectra, from which the resizer foresees: computed once, and nobody waits for another user's."""

import asyncio
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from lorabench.web.shelf import Item

if TYPE_CHECKING:
    from lorabench.adapters.resizing.preview import Preview

__all__ = ["Previews"]

_KEPT = 16
_AT_ONCE = 3
"""Adapters that are read at one time: memory stays bounded."""


class Previews:
    """The last few that were asked for."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], Preview] = OrderedDict()
        self._coming: dict[tuple[object, ...], Future[Preview]] = {}
        self._lock, self._at_once = threading.Lock(), threading.BoundedSemaphore(_AT_ONCE)
        self._lanes: dict[str, ThreadPoolExecutor] = {}

    async def of(self, user: str, item: Item) -> "Preview":
        """An adapter's; it is read the first time. Each user's are read one after another.

        Args:
            user: who asks.
            item: the adapter.

        Raises:
            LorabenchError: it cannot be read.
        """
        key = item.path, item.changed, item.size
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
            coming = self._coming.get((user, *key))
            if coming is None:
                lane = self._lanes.setdefault(user, ThreadPoolExecutor(1, f"spectra of {user}"))
                coming = self._coming[user, *key] = lane.submit(self._read, key, item)
        try:
            # No thread that others need is held meanwhile, and who leaves does not end it for who waits too.
            return await asyncio.shield(asyncio.wrap_future(coming))
        finally:
            if coming.done():
                self._coming.pop((user, *key), None)

    def _read(self, key: tuple[object, ...], item: Item) -> "Preview":
        from lorabench.adapters.reading.files import load  # torch takes seconds; the server shall be there at once
        from lorabench.adapters.resizing.preview import Preview

        with self._at_once:
            with self._lock:
                known = self._known.get(key)  # another user has asked meanwhile
            preview = known or Preview(load(item.path))
        with self._lock:
            self._known[key] = preview
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return preview
