"""The one-file form of today's diffusers: PEFT's `lora_A` and `lora_B` under a pipeline's parts."""

from collections.abc import Mapping
from typing import ClassVar

from lorabench.adapters.layouts.base import TensorKeys, WrittenLayout

__all__ = ["LAYOUT", "OneFile"]


class OneFile(WrittenLayout):
    """`transformer.x.lora_A.weight`, as `save_lora_weights` writes it; read as PEFT's names are."""

    name: ClassVar[str] = "diffusers-peft"
    place: ClassVar[int] = 2
    title: ClassVar[str] = "diffusers' names of today, transformer.x.lora_A.weight"
    own: ClassVar[frozenset[str]] = frozenset({"peft"})
    carries: ClassVar[frozenset[str]] = own
    nearest_to: ClassVar[frozenset[str]] = frozenset()

    def keys(self, module: str, embedding: bool, names: Mapping[str, str]) -> TensorKeys:  # noqa: ARG002
        """PEFT's two letters, without its prefix."""
        return TensorKeys(f"{names[module]}.lora_A.weight", f"{names[module]}.lora_B.weight")


LAYOUT = OneFile()
