"""Many adapters as one labelled collection; one module a source."""

from lorabench.zoo.labels import Labels
from lorabench.zoo.store import Module, ModuleShape, Stack, StoreWriter, Zoo, open_store

__all__ = ["Labels", "Module", "ModuleShape", "Stack", "StoreWriter", "Zoo", "open_store"]
