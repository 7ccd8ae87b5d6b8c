"""cloneofsimo's lists, whose tensors are counted: `unet:0:up`, `unet:0:down`."""

import re
from typing import ClassVar

from lorabench.adapters.layouts.base import Layout, ModuleKey

__all__ = ["LAYOUT"]


class Cloneofsimo(Layout):
    """Read alone; positions are no names."""

    name: ClassVar[str] = "cloneofsimo"
    patterns: ClassVar[tuple[re.Pattern[str], ...]] = (
        re.compile(r"^(?P<module>\w+):(?P<tail>\d+):(?P<part>down|up)$"),
    )

    def read(self, match: re.Match[str]) -> ModuleKey:
        """See `Layout.read`."""
        return ModuleKey(f"{match['module']}.{match['tail']}", match["part"])


LAYOUT = Cloneofsimo()
