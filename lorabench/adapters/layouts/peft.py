"""PEFT's folder: `base_model.model.<module>.lora_A.weight` in adapter_model.safetensors, and adapter_config.json."""

import re
from collections.abc import Mapping
from typing import ClassVar, Literal

from lorabench.adapters.layouts.base import NUMBER, TensorKeys, WrittenLayout

__all__ = ["LAYOUT"]


class Peft(WrittenLayout):
    """A folder; its configuration has ranks, α and every option. One model each, so no part of a pipeline."""

    name: ClassVar[str] = "peft"
    beside: ClassVar[bool] = True
    place: ClassVar[int] = 0
    title: ClassVar[str] = "PEFT's folder, with adapter_config.json"
    folder: ClassVar[bool] = True
    alpha: ClassVar[Literal["folded", "tensor", "config"]] = "config"
    own: ClassVar[frozenset[str]] = frozenset({"peft", "loralib", "mlx"})
    carries: ClassVar[frozenset[str]] = frozenset({"peft"})
    nearest_to: ClassVar[frozenset[str]] = frozenset()
    needs_part: ClassVar[bool] = False
    embeddings: ClassVar[bool] = True
    configured: ClassVar[bool] = True
    patterns: ClassVar[tuple[re.Pattern[str], ...]] = (
        re.compile(r"^(?P<module>.+?)[._]lora_(?P<part>[AB])(?:\.[^.]+)?\.weight" + NUMBER),
    )

    def keys(self, module: str, embedding: bool, names: Mapping[str, str]) -> TensorKeys:
        """The update of an embedding table has names of its own."""
        middle, end = ("lora_embedding_", "") if embedding else ("lora_", ".weight")
        stem = f"base_model.model.{names[module]}.{middle}"
        return TensorKeys(f"{stem}A{end}", f"{stem}B{end}")


LAYOUT = Peft()
