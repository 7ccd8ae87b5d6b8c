"""PEFT's update of an embedding table: `base_model.model.<module>.lora_embedding_A`."""

import re
from typing import ClassVar

from lorabench.adapters.layouts.base import Layout

__all__ = ["LAYOUT"]


class PeftEmbedding(Layout):
    """A [r, vocabulary] and B [dim, r]; the table's own update is ΔW transposed."""

    name: ClassVar[str] = "peft-embedding"
    beside: ClassVar[bool] = True
    embeds: ClassVar[bool] = True
    patterns: ClassVar[tuple[re.Pattern[str], ...]] = (
        re.compile(r"^(?P<module>.+?)\.lora_embedding_(?P<part>[AB])(?:\.[^.]+){0,2}$"),
    )


LAYOUT = PeftEmbedding()
