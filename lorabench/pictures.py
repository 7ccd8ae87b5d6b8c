"""What all pictures of the house share: colours, look, texts that fit, and how a figure is written."""

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ft2font import FT2Font
from PIL import Image

from lorabench.errors import LorabenchError
from lorabench.storage import write_chunks

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "SERIES",
    "drawable",
    "house_style",
    "picture_bytes",
    "save_picture",
    "shortened",
    "tidy",
]

# Okabe & Ito 2008: told apart by colour-blind readers; every colour also has its own marker.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GREY, BLACK = "#666666", "#000000"
SERIES = (
    (BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), ("#56B4E9", "v"), ("#E69F00", "P"),
    ("#882255", "X"), (BLACK, "<"), ("#8B5A2B", ">"), ("#F0E442", "p"),
)  # fmt: skip
"""Colours and markers of up to ten series; any two differ in both, and in CIELAB by 16 or more to every reader."""

_FONT = "DejaVu Sans"  # comes with matplotlib: one picture on every machine
_LOOK: dict[Any, Any] = {
    "axes.labelsize": 8,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.titley": 1.0,  # no ticks are above panels; looking for them takes a tenth of the drawing
    "figure.titlesize": 11,
    "font.family": _FONT,
    "font.size": 8,
    "hatch.color": "0.6",
    "hatch.linewidth": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "svg.hashsalt": "lorabench",
    "text.parse_math": False,  # a dollar sign in a module's name is a dollar sign
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}
_DPI = 130
_LOCK = threading.RLock()


@contextmanager
def house_style() -> Iterator[None]:
    """The look of pictures; settings are of the whole process, so threads draw one after the other."""
    with _LOCK, mpl.rc_context({**mpl.rcParamsDefault, **_LOOK, "backend": "agg"}):
        yield


def save_picture(figure: Figure, path: Path) -> Path:
    """Write a figure, whole or not at all; the same figure gives the same bytes.

    Args:
        figure: drawn within `house_style`.
        path: ends in .png or .svg.

    Raises:
        LorabenchError: another ending, or the disk refuses.
    """
    _write(path, picture_bytes(figure, path))
    return path


def picture_bytes(figure: Figure, path: Path) -> bytes:
    """What `save_picture` writes.

    Raises:
        LorabenchError: the path ends in neither .png nor .svg.
    """
    form = path.suffix.lower()
    if form not in (".png", ".svg"):
        raise LorabenchError(f"{path}: a picture is written as .png or .svg. Give a path that ends so.")
    picture = io.BytesIO()
    with house_style():
        if form == ".svg":
            figure.savefig(picture, format="svg", metadata={"Date": None})
            return picture.getvalue()
        figure.set_dpi(_DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]  # `savefig` draws twice: once for the layout, and again
        pixels = Image.fromarray(np.asarray(canvas.buffer_rgba()))  # type: ignore[no-untyped-call]
    pixels.save(picture, format="png", dpi=(_DPI, _DPI), compress_level=3)
    return picture.getvalue()


def tidy(axes: Axes, grid: Literal["both", "x", "y"] = "y") -> None:
    """Light grid lines behind the data, no box."""
    axes.grid(axis=grid, color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def drawable(text: str) -> str:
    """The text with "?" in place of letters that the font lacks, which would be boxes and warnings.

    >>> drawable("σ of to_q"), drawable("猫")
    ('σ of to_q', '?')
    """
    if text.isascii():
        return text
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
    return get_font(findfont(_FONT))


# A font is an open file, and what one process reads in it moves the other's place.
os.register_at_fork(after_in_child=_font.cache_clear)


def _write(path: Path, data: bytes) -> None:
    write_chunks(path, [data])
