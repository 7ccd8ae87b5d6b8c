"""kohya's `block_dims` and `block_alphas`: one rank and one α for each of the 25 blocks of an SD 1 or SD 2 U-Net."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lorabench.adapters.names.families import Family
from lorabench.adapters.names.identity import identity, split_part
from lorabench.text import some

__all__ = ["Blocks", "block_ranks"]

_BLOCKS = 25
_MIDDLE = 12
_PLACE = re.compile(r"(up|down)_blocks_(\d+)_(resnets|attentions|upsamplers|downsamplers)_(\d+)_")
_WIDE = re.compile(r"(resnets_\d+_conv[12]|samplers_\d+_conv)_$")
"""3×3 convolutions, which have arguments of their own; `conv_shortcut` is 1×1."""
_LATER = re.compile(
    r"(^|_)(transformer_blocks_[1-9]\d*_|input_blocks_|middle_block_|output_blocks_|add_embedding_|label_emb_)"
)
_NUMBERED = ("sd1", "sd2")


@dataclass(frozen=True)
class Blocks:
    """What sd-scripts' networks/lora.py takes of blocks, by the names of its --network_args.

    Attributes:
        block_dims: the largest rank of the linear layers and 1×1 convolutions of each block; 0 where it has none.
        block_alphas: α of each, so that α / dim is the scale that most of its modules have.
        conv_block_dims: the same of 3×3 convolutions; None where the adapter has none, and then none is trained.
        conv_block_alphas: their α.
        mixed: numbers of the blocks whose modules differ in scale, of which one α can keep one alone.
    """

    block_dims: Sequence[int]
    block_alphas: Sequence[float]
    conv_block_dims: Sequence[int] | None = None
    conv_block_alphas: Sequence[float] | None = None
    mixed: Sequence[int] = ()

    def network_args(self) -> list[str]:
        """Each as one word behind --network_args.

        >>> Blocks([0, 4], [0.0, 2.0]).network_args()
        ['block_dims=0,4', 'block_alphas=0.0,2.0']
        """
        given = {name: values for name, values in vars(self).items() if name != "mixed" and values is not None}
        return [f"{name}={','.join(map(repr, values))}" for name, values in given.items()]


def block_ranks(
    ranks: Mapping[str, int], scales: Mapping[str, float], family: Family | None = None
) -> tuple[Blocks | None, str]:
    """The blocks of an SD 1 or SD 2 U-Net, and "" ; of others None, and why.

    Block 0 is the way in, 1 to 11 the down blocks, 12 the middle, 13 to 24 the up blocks, three to a stage. SDXL's 23
    blocks are numbered otherwise. Text encoders have no block, and are left to `network_dim`.

    Args:
        ranks: module -> rank, 0 where it needs none.
        scales: module -> α / r.
        family: of the base model, where it is known.

    Example:
        >>> ranks = {"unet.mid_block.attentions.0.proj_in": 4, "unet.up_blocks.3.attentions.2.proj_in": 2}
        >>> blocks, _ = block_ranks(ranks, dict.fromkeys(ranks, 0.5))
        >>> blocks.block_dims[12], blocks.block_dims[24], blocks.block_alphas[12], len(blocks.block_dims)
        (4, 2, 2.0, 25)
        >>> block_ranks({"unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": 4}, {})[0] is None
        True
    """
    own = {name: rank for name, rank in ranks.items() if identity(name).part in ("denoiser", "")}
    why = _not_numbered(own, family)
    if why:
        return None, why
    narrow: dict[int, list[str]] = {}
    wide: dict[int, list[str]] = {}
    for name, rank in own.items():
        flat = f"{identity(name).flat}_"
        block = _block(flat)
        if block is None or block >= _BLOCKS:
            return None, f"{name} is in none of the 25 blocks of an SD 1 or SD 2 U-Net"
        if rank:
            (wide if _WIDE.search(flat) else narrow).setdefault(block, []).append(name)
    if not narrow and not wide:
        return None, "no module of a U-Net needs a rank"
    several = (names for groups in (narrow, wide) for names in groups.items())
    mixed = sorted({block for block, names in several if len({scales[name] for name in names}) > 1})
    dims, alphas = _lists(narrow, ranks, scales)
    conv_dims, conv_alphas = _lists(wide, ranks, scales) if wide else (None, None)
    return Blocks(dims, alphas, conv_dims, conv_alphas, mixed), ""


def _lists(
    groups: Mapping[int, Sequence[str]], ranks: Mapping[str, int], scales: Mapping[str, float]
) -> tuple[list[int], list[float]]:
    """The largest rank of each block, and α by its commonest scale."""
    dims, alphas = [0] * _BLOCKS, [0.0] * _BLOCKS
    for block, names in groups.items():
        dims[block] = max(ranks[name] for name in names)
        alphas[block] = dims[block] * Counter(scales[name] for name in names).most_common(1)[0][0]
    return dims, alphas


def _not_numbered(names: Iterable[str], family: Family | None) -> str:
    """Why these modules have no place among the 25 blocks; "" where nothing speaks against it."""
    names = list(names)
    if not names:
        return "no module is a U-Net's"
    # By the file's own spelling: an identity has SDXL's `input_blocks` under diffusers' names already.
    later = [name for name in names if _LATER.search(split_part(name)[1].replace(".", "_") + "_")]
    if later:
        return f"{some(later, most=1)} is SDXL's, whose 23 blocks are numbered otherwise"
    if family is not None and family.key not in _NUMBERED:
        return f"the modules are those of {family.name}, and the 25 blocks are those of SD 1 and SD 2"
    return ""


def _block(flat: str) -> int | None:
    if "mid_block_" in flat:
        return _MIDDLE
    found = _PLACE.search(flat)
    if found is None:
        return None
    side, stage, kind, number = found.groups()
    within = 2 if kind in ("upsamplers", "downsamplers") else int(number)
    return 3 * int(stage) + within + (1 if side == "down" else _MIDDLE + 1)
