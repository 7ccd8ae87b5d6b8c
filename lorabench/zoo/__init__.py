"""Many adapters as one labelled collection; one module a source."""

from lorabench.zoo.labels import Labels
from lorabench.zoo.store import Module, Stack, StoreWriter, Zoo, open_store

__all__ = ["Labels", "Module", "Stack", "StoreWriter", "Zoo", "open_store"]
