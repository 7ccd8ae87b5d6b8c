"""Microsoft's loralib: `<module>.lora_A`, and PEFT's parameters without `.weight`."""

import re
from typing import ClassVar

from lorabench.adapters.layouts.base import NUMBER, Layout

__all__ = ["LAYOUT"]


class Loralib(Layout):
    """Read alone; merged projections are stored part by part."""

    name: ClassVar[str] = "loralib"
    merged: ClassVar[bool] = True
    patterns: ClassVar[tuple[re.Pattern[str], ...]] = (
        re.compile(r"^(?P<module>.+?)\.lora_(?P<part>[AB])(?:\.(?!(?:bias|weight)$)[^.\d][^.]*)?" + NUMBER),
    )


LAYOUT = Loralib()
