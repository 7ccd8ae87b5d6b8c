"""A trained model as a folder, and what it says of adapters that it has not seen."""

__all__ = ["ARRAYS", "CONFIG", "ERROR", "STRANGERS"]

ARRAYS, CONFIG = "model.safetensors", "config.json"
"""Files by which a folder is known as a model."""

ERROR = 0.1
"""How often the right class may be too unlikely to be named, unless something else is said."""
STRANGERS = 0.05
"""How many adapters like those of the training may be turned away, unless something else is said."""
