"""kohya's `block_dims`: one rank for each of the 25 blocks of an SD 1 or SD 2 U-Net."""

import re
from collections.abc import Mapping

from lorabench.adapters.names.identity import identity

__all__ = ["block_dims"]

_BLOCKS = 25
_MIDDLE = 12
_PLACE = re.compile(r"(up|down)_blocks_(\d+)_(resnets|attentions|upsamplers|downsamplers)_(\d+)_")


def block_dims(ranks: Mapping[str, int]) -> list[int] | None:
    """The largest rank of each block, 0 where a block has no module; None where the modules are no such U-Net's.

    Block 0 is the way in, 1 to 11 the down blocks, 12 the middle, 13 to 24 the up blocks, three to a stage. Text
    encoders have no block, and are left to `network_dim`.

    Args:
        ranks: module -> rank.

    Example:
        >>> found = block_dims({"unet.mid_block.attentions.0.proj_in": 4, "unet.up_blocks.3.attentions.2.proj_in": 2})
        >>> found[12], found[24], len(found)
        (4, 2, 25)
    """
    dims = [0] * _BLOCKS
    for name, rank in ranks.items():
        module = identity(name)
        if module.part not in ("denoiser", ""):
            continue
        block = _block(f"{module.flat}_")
        if block is None or block >= _BLOCKS:
            return None
        dims[block] = max(dims[block], rank)
    return dims if any(dims) else None


def _block(flat: str) -> int | None:
    if "mid_block_" in flat:
        return _MIDDLE
    found = _PLACE.search(flat)
    if found is None:
        return None
    side, stage, kind, number = found.groups()
    within = 2 if kind in ("upsamplers", "downsamplers") else int(number)
    return 3 * int(stage) + within + (1 if side == "down" else _MIDDLE + 1)
