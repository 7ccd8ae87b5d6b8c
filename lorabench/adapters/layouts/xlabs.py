"""XLabs' FLUX adapters: `double_blocks.0.processor.qkv_lora1.down.weight`."""

import re
from typing import ClassVar

from lorabench.adapters.layouts.base import Layout, ModuleKey

__all__ = ["LAYOUT"]

_STREAM = {"1": "img_attn", "2": "txt_attn"}


class XLabs(Layout):
    """Read alone; the number behind `lora` says which stream of a double block it is."""

    name: ClassVar[str] = "xlabs"
    patterns: ClassVar[tuple[re.Pattern[str], ...]] = (
        re.compile(r"^(?P<module>.+)\.processor\.(?P<tail>qkv|proj)_lora(?P<stream>[12])\.(?P<part>down|up)\.weight$"),
    )

    def read(self, match: re.Match[str]) -> ModuleKey:
        """See `Layout.read`."""
        return ModuleKey(f"{match['module']}.{_STREAM[match['stream']]}.{match['tail']}", match["part"])


LAYOUT = XLabs()
