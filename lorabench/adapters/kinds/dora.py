"""DoRA (Liu et al. 2024): a LoRA beside a magnitude by row, of which the low-rank part alone is ΔW."""

import re
from typing import ClassVar

from lorabench.adapters.kinds.base import Shapes
from lorabench.adapters.kinds.lora import Lora

__all__ = ["KIND", "MAGNITUDE_LEFT_OUT", "Dora"]

MAGNITUDE_LEFT_OUT = "DoRA: the magnitude vector is left out, ΔW is its low-rank part alone"


class Dora(Lora):
    """m · (W + scale · up @ down) / ‖W + scale · up @ down‖ by rows; what m does depends on the base weights.

    A magnitude may stand beside LoHa and LoKr too (LyCORIS): then the module is DoRA to people, and its factors are
    those of the other kind.
    """

    name: ClassVar[str] = "dora"
    title: ClassVar[str] = "DoRA"
    marks: ClassVar[re.Pattern[str] | None] = re.compile(r"\.(?P<part>lora_magnitude_vector|dora_scale)(\.[^.]+){0,2}$")
    hint: ClassVar[re.Pattern[str] | None] = re.compile(r"\.lora_magnitude_vector(\.|$)|\.dora_scale$")
    example: ClassVar[Shapes] = {**Lora.example, "dora_scale": (6, 1)}
    optional: ClassVar[frozenset[str]] = frozenset({"dora_scale"})
    peft_type: ClassVar[str] = ""
    pair: ClassVar[bool] = False


KIND = Dora()
