"""Names as pictures can show them: short enough, and in letters that the font has."""

from functools import lru_cache

from matplotlib.font_manager import findfont, get_font
from matplotlib.ft2font import FT2Font

from lorabench.adapters.adapter import Adapter

__all__ = ["counted", "drawable", "shortened", "titled"]

# Names that nearly every file of a tool has: the folder's tells more.
_COMMON = frozenset({"adapter_model", "adapters", "pytorch_lora_weights", "lora", "model"})


def titled(adapter: Adapter, what: str) -> str:
    """A figure's title: the file, and what is drawn."""
    path = adapter.path
    name = f"{path.parent.name}/{path.stem}" if path.stem in _COMMON and path.parent.name else path.stem
    return drawable(f"{shortened(name, 60)}: {what}")


def counted(modules: int) -> str:
    """So many modules, in words.

    >>> counted(1), counted(264)
    ('1 module', '264 modules')
    """
    return f"{modules} module{'' if modules == 1 else 's'}"


def drawable(text: str) -> str:
    """The text with "?" in place of letters that the font lacks, which would be boxes and warnings.

    >>> drawable("σ of to_q"), drawable("猫")
    ('σ of to_q', '?')
    """
    font = _font()
    return "".join(letter if letter == "\n" or font.get_char_index(ord(letter)) else "?" for letter in text)


def shortened(name: str, most: int) -> str:
    """At most so many letters: the middle goes, since names differ at their ends.

    >>> shortened("down_blocks.0.attentions.1.proj_in", 20)
    'down_block…1.proj_in'
    """
    if len(name) <= most:
        return name
    head = most // 2
    return f"{name[:head]}…{name[head + 1 - most :]}"


@lru_cache(maxsize=1)
def _font() -> FT2Font:
    return get_font(findfont("DejaVu Sans"))
