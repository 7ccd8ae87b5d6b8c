"""diffusers' attention processors of 2023: `<block>.processor.to_q_lora.down.weight`."""

import re
from typing import ClassVar

from lorabench.adapters.layouts.base import NUMBER, Layout, ModuleKey

__all__ = ["LAYOUT"]


class DiffusersOld(Layout):
    """Read alone; `to_out` is the first of two layers in today's models."""

    name: ClassVar[str] = "diffusers-old"
    patterns: ClassVar[tuple[re.Pattern[str], ...]] = (
        re.compile(r"^(?P<module>.+)\.processor\.(?P<tail>\w+?)_lora\.(?P<part>down|up)\.weight" + NUMBER),
    )

    def read(self, match: re.Match[str]) -> ModuleKey:
        """See `Layout.read`."""
        tail = "to_out.0" if match["tail"] == "to_out" else match["tail"]
        return ModuleKey(f"{match['module']}.{tail}{match['number'] or ''}", match["part"])


LAYOUT = DiffusersOld()
