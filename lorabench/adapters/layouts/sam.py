"""Adapters of Segment Anything that count their layers: `w_a_000`, `w_b_000`."""

import re
from typing import ClassVar

from lorabench.adapters.layouts.base import Layout, ModuleKey

__all__ = ["LAYOUT"]


class Sam(Layout):
    """Read alone; positions are no names."""

    name: ClassVar[str] = "sam"
    patterns: ClassVar[tuple[re.Pattern[str], ...]] = (re.compile(r"^(?:.+\.)?w_(?P<part>[ab])_(?P<tail>\d+)$"),)

    def read(self, match: re.Match[str]) -> ModuleKey:
        """See `Layout.read`."""
        return ModuleKey(f"w_{match['tail']}", "down" if match["part"] == "a" else "up")


LAYOUT = Sam()
