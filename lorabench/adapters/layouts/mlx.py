"""MLX: `<module>.lora_a` [d_in, r] and `.lora_b` [r, d_out]."""

import re
from typing import ClassVar

from lorabench.adapters.layouts.base import Layout

__all__ = ["LAYOUT"]


class Mlx(Layout):
    """Read alone; factors are transposed, and adapter_config.json has the scale itself."""

    name: ClassVar[str] = "mlx"
    transposed: ClassVar[bool] = True
    short_magnitude: ClassVar[bool] = True
    beside: ClassVar[bool] = True
    scale_entry: ClassVar[str] = "scale"
    patterns: ClassVar[tuple[re.Pattern[str], ...]] = (re.compile(r"^(?P<module>.+?)\.lora_(?P<part>[ab])$"),)


LAYOUT = Mlx()
