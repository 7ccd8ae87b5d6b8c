"""diffusers' layout of before PEFT: `<module>.lora.down.weight`, text encoders' with `.lora_linear_layer.`."""

import re
from collections.abc import Mapping
from typing import ClassVar

from lorabench.adapters.layouts.base import NUMBER, TensorKeys, WrittenLayout

__all__ = ["LAYOUT"]


class Diffusers(WrittenLayout):
    """One file without α; any version of diffusers reads it, and scales by 1."""

    name: ClassVar[str] = "diffusers"
    place: ClassVar[int] = 1
    title: ClassVar[str] = "diffusers' older names, unet.x.lora.down.weight"
    own: ClassVar[frozenset[str]] = frozenset({"diffusers", "diffusers-old", "xlabs", "peft"})
    carries: ClassVar[frozenset[str]] = frozenset({"diffusers"})
    nearest_to: ClassVar[frozenset[str]] = frozenset({"diffusers", "diffusers-old", "xlabs", "cloneofsimo"})
    patterns: ClassVar[tuple[re.Pattern[str], ...]] = (
        re.compile(
            r"^(?P<module>(?!.*\.processor\.).+?)[._]lora(?:_linear_layer)?\.(?P<part>down|up|mid)\.weight" + NUMBER
        ),
    )

    def keys(self, module: str, embedding: bool, names: Mapping[str, str]) -> TensorKeys:  # noqa: ARG002
        """Diffusers knows the modules of a text encoder by the word `lora_linear_layer` alone."""
        text = names[module].startswith("text_encoder")
        stem = f"{names[module]}.{'lora_linear_layer' if text else 'lora'}"
        return TensorKeys(f"{stem}.down.weight", f"{stem}.up.weight")


LAYOUT = Diffusers()
